"""A wire for organisations that run NVIDIA FLARE: the direct carrier's connections, carried by one FLARE job per site.

    tunnel.py  connections carried over one message at a time; knows nothing of FLARE
    cells.py   the two classes that FLARE loads, and all that its class lists need to allow
    kits.py    what FLARE's server and clients must be told; a job's files
    keeper.py  submits a site's job, and again whenever it has ended

A participant dials its own machine, the coordinator is dialled from FLARE's server's machine; between them FLARE moves
bytes that mutual TLS has sealed. Needs the extra ``pip install '.[flare]'`` where FLARE runs; coordinator and
participants need `.[direct]` only.

*Trust:* FLARE, its certificates and whoever may submit jobs can stop the wire or slow it down: nothing else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubbub.engine.flare.cells import ServerTunnel, SiteTunnel

__all__ = ["ServerTunnel", "SiteTunnel"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'hubbub.engine.flare' has no attribute {name!r}")
    return getattr(importlib.import_module("hubbub.engine.flare.cells"), name)
