#!/usr/bin/env bash
# A network of NVIDIA FLARE, as organisations have that run it: its server, a client for each hospital, a keeper.
#   pip install 'hubbub[flare]'; examples/hospitals/flare.sh DIR PORT SITE...
# Carries localhost:PORT+1 at the first site, localhost:PORT+2 at the second, ... to localhost:PORT, until stopped.
# Every folder in DIR stands for a machine of its own; docs/how-to/flare.md says what each step is for.
set -euo pipefail
port=$2 sites=("${@:3}") admin=operator@hub.test
mkdir -p "$1" && cd "$1"
kits=$PWD/kits/heart/prod_00
PATH="$(dirname "$(command -v nvflare)"):$PATH" # the Python that FLARE is installed in
ports='import socket; s = [socket.create_server(("", 0)) for _ in "12"]; print(*(one.getsockname()[1] for one in s))'
read -r learn manage < <(python -c "$ports")
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT

echo "FLARE: the hub makes an authority"
cat >profile.yml <<PROFILE
name: heart
scheme: grpc
connection_security: mtls
server: {host: localhost, fed_learn_port: $learn, admin_port: $manage}
PROFILE
ca=$(nvflare --format json cert init --profile profile.yml -o ca)
fingerprint=$(python -c 'import json, sys; print(json.loads(sys.argv[1])["data"]["rootca_fingerprint_sha256"])' "$ca")

echo "FLARE: everybody asks for a certificate and makes a kit that loads two classes and nobody's code"
enrol() { # NAME TYPE [ROLE]: request, approval and package are steps of three machines
  echo "{name: heart, participants: [{name: $1, type: $2, org: heart${3:+, role: $3}}]}" >"$1.yml"
  nvflare cert request -p "$1.yml" --out "$1"
  nvflare cert approve "$1/$1.request.zip" -c ca --profile profile.yml --out "$1.signed.zip"
  nvflare package "$1.signed.zip" --request-dir "$1" --fingerprint "$fingerprint" -w kits
  [ "$2" = admin ] || python -m hubbub.engine.flare configure "$kits/$1"
}
{
  enrol localhost server
  enrol $admin admin lead
  for site in "${sites[@]}"; do enrol "$site" client; done
} >enrolment.out

echo "FLARE: server and clients start, and a keeper that keeps jobs running"
start() { # NAME KIND PORT [OPTION]: what startup/start.sh of a kit does; the port is where its end of the tunnel is
  mkdir -p "$kits/$1/transfer"
  HUBBUB_TUNNEL=127.0.0.1:$3 python -m "nvflare.private.fed.app.$2.$2_train" -m "$kits/$1" -s "fed_$2.json" \
    --set secure_train=true org=heart config_folder="${4-}" uid="$1" >"$1.out" 2>&1 &
}
start localhost server "$port"
for n in "${!sites[@]}"; do start "${sites[$n]}" client $((port + 1 + n)) config; done
python -m hubbub.engine.flare keep "$kits/$admin" $admin "${sites[@]}" --jobs 1 >keeper.out 2>&1 &
wait
