"""A participant's process that gives back what it is sent: echo_site.py ADDRESS FOLDER KEEPALIVE."""

import sys
import threading
from pathlib import Path

from hubbub.engine.direct import Credentials, Spool, Tuning, serve

if __name__ == "__main__":
    address, folder, keepalive = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    credentials = Credentials(*((folder / name).read_bytes() for name in ("authority", "certificate", "key")))
    serve(
        address,
        credentials,
        lambda question: question,
        stop=threading.Event(),
        spool=Spool(folder),
        tuning=Tuning(keepalive=keepalive),
    )
