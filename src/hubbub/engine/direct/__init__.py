"""The carrier of a federation of its own: gRPC over mutual TLS, one port, dialled by everybody.

    credentials.py  certificates, a key's fingerprint, limits and times
    frames.py       messages cut into frames, and put together again
    server.py       `DirectServer`: the coordinator's end, a `Transport`
    site.py         `serve`: a participant's end; `send_command`: a person's

Needs the extra: ``pip install '.[direct]'`` in a checkout. Only this folder imports grpc.

*Trust:* whoever runs the authority that signs certificates can read the pipe and stop it; the roster's fingerprints
decide who is whom, and what is believed of a message stands in its signatures.
"""

from hubbub.engine.direct.credentials import Credentials, Tuning, fingerprint
from hubbub.engine.direct.frames import Spool
from hubbub.errors import InputError

try:
    from hubbub.engine.direct.server import DirectServer
    from hubbub.engine.direct.site import send_command, serve
except ModuleNotFoundError as error:
    raise InputError(
        f"a carrier between hosts, needs grpcio, found no module {error.name!r}",
        hint="pip install '.[direct]' in a checkout of hubbub",
    ) from error

__all__ = ["Credentials", "DirectServer", "Spool", "Tuning", "fingerprint", "send_command", "serve"]
