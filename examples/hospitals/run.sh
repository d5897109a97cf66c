#!/usr/bin/env bash
# Five hospitals train together, each in a process of its own, over TLS: from keys to a verified bundle.
#   pip install '.[torch,examples,direct]'; examples/hospitals/run.sh DIR    (PORT=8443: where the coordinator listens)
#   CARRIER=flare examples/hospitals/run.sh DIR: NVIDIA FLARE carries the hospitals' connections (flare.sh)
# It takes about three minutes. DIR is new; each folder in it stands for a machine: docs/how-to/deploy.md uses several.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) port=${PORT:-8443} carrier=${CARRIER:-direct}
mkdir -p "$1" && cd "$1"
hospitals=$(seq -f hospital-%g 5) owners=$(seq -f owner-%g 5)
at() { hubbub "${@:2}" --at "$1/$1.membership" --key "$1/$1.key"; } # somebody, from afar
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
echo "1. Everybody makes keys at home and shows a card"
new() { hubbub keys new "$1" --role "$2" --organisation "$3" --out "$1"; }
for n in 1 2 3 4 5; do new hospital-$n node clinic-$n; new owner-$n data-owner clinic-$n; done
new officer privacy-officer board; new operator operator it; new scientist data-scientist lab
everybody="$hospitals $owners officer operator scientist"

echo "2. The operator asks to found, and answers everybody's request with a membership"
founding=$(hubbub federation found heart ./*/*.card --key operator/operator.key --home hub | cut -d: -f1)
near() { case $carrier:$1 in flare:hospital-*) echo $((port + ${1#*-})) ;; *) echo "$port" ;; esac; } # where somebody dials
for who in $everybody; do
  hubbub enrol "$who/$who.key" --out "$who.request"
  hubbub admit "$who.request" --home hub --address "localhost:$(near "$who")" --out "$who"
done

echo "3. The coordinator listens, and every founder signs over the wire"
mkdir -p hub/studies/hospitals && cp "$here"/study.* hub/studies/hospitals
python "$here/records.py" . # each hospital's records, and test records for the coordinator
if [ "$carrier" = flare ]; then
  "$here/flare.sh" flare "$port" $hospitals &
  for site in $hospitals; do until (: <"/dev/tcp/localhost/$(near "$site")") 2>/dev/null; do kill -0 $! && sleep 1; done; done
fi
HUBBUB_DATA=hub/records hubbub coordinate hub --address "localhost:$port" 2>hub/log &
at operator status --wait 0
for who in $hospitals $owners officer scientist; do at "$who" approve "$founding"; done

echo "4. Each hospital says what it allows, has read the study, and dials"
for site in $hospitals; do
  mkdir -p "$site/studies/hospitals" && cp "$here"/study.* "$site/studies/hospitals"
  printf '[site]\nkey = "%s.key"\nmembership = "%s.membership"\ndata = "records"\n' "$site" "$site" >"$site/site.toml"
  printf '[policy]\nepsilon = 3.0\nminimum = 4\npurposes = ["research"]\n' >>"$site/site.toml"
  hubbub join "$site" 2>"$site/log" &
done
for n in 1 2 3 4 5; do
  id=$(at owner-$n dataset register hospital-$n --purpose research --retention 2040-12-31 --epsilon 6 | cut -d: -f1)
  at officer approve "$id"
done
at operator status --wait 5

echo "5. The study is proposed, signed, run"
mkdir -p scientist/study && cp "$here"/study.* scientist/study
study=$(at scientist propose study scientist/study | cut -d: -f1)
for who in $owners officer; do at "$who" approve "$study"; done
run=$(at scientist submit scientist/study --wait | tee -a /dev/stderr | cut -d: -f1)

echo "6. So is its release; anybody can check the bundle"
release=$(at scientist propose release "$run" | cut -d: -f1)
for who in $owners officer; do at "$who" approve "$release"; done
at operator release "$run" --out bundle
hubbub verify bundle --policy scientist/scientist.membership
