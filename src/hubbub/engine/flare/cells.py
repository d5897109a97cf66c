"""The two classes that FLARE loads: one end of a tunnel each, in the two processes of a job of one site."""

# FLARE lives in environments of its own, not in the one where types are checked.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

import os
import socket
import threading
from contextlib import suppress
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import make_reply
from nvflare.fuel.f3.cellnet import defs
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.cellnet.utils import make_reply as make_answer
from nvflare.fuel.f3.message import Message

from hubbub.engine.flare.kits import ADDRESS
from hubbub.engine.flare.tunnel import BEAT_SECONDS, Tunnel

_CHANNEL, _TOPIC = "hubbub", "tunnel"
_HERE = frozenset({"localhost", "127.0.0.1", "::1"})


class _Link:
    """One message at a time to the other process of this job, beside FLARE's streams and tasks.

    Args:
        fl_ctx: FLARE's context.
        host: Name of the other process's host in FLARE's network.
    """

    def __init__(self, fl_ctx: Any, host: str) -> None:
        self._cell = fl_ctx.get_engine().get_cell().core_cell
        self._peer = FQCN.join([host, fl_ctx.get_job_id()])

    def send(self, data: bytes, seconds: float) -> bool:
        """Deliver; whether the other end took it."""
        reply = self._cell.send_request(_CHANNEL, _TOPIC, self._peer, Message(payload=data), seconds, optional=True)
        return reply is not None and reply.get_header(defs.MessageHeaderKey.RETURN_CODE) == defs.ReturnCode.OK

    def listen(self, tunnel: Tunnel) -> None:
        """Hand what comes from the other process of this job to a tunnel, and from nobody else."""

        def take(message: Message) -> Message:
            is_ours = message.get_header(defs.MessageHeaderKey.ORIGIN) == self._peer
            is_taken = is_ours and tunnel.take(bytes(message.payload or b""))
            return make_answer(defs.ReturnCode.OK if is_taken else defs.ReturnCode.INVALID_REQUEST)

        self._cell.register_request_cb(_CHANNEL, _TOPIC, take)


class ServerTunnel(Controller):
    """The end beside the coordinator: lives as long as the site's end is heard."""

    def start_controller(self, fl_ctx: Any) -> None:
        """Nothing to prepare."""

    def stop_controller(self, fl_ctx: Any) -> None:
        """Nothing to let go of."""

    def process_result_of_unknown_task(self, *_: Any, **__: Any) -> None:
        """There are no tasks."""

    def control_flow(self, abort_signal: Any, fl_ctx: Any) -> None:
        """Carry connections until the job is aborted or the site's end is silent."""
        (client,) = fl_ctx.get_engine().get_clients()
        link, address = _Link(fl_ctx, client.get_fqcn()), _address()
        tunnel = Tunnel(link.send, lambda: _connected(address))
        link.listen(tunnel)
        pause = threading.Event()
        while not (abort_signal.triggered or tunnel.is_lost):
            pause.wait(BEAT_SECONDS)
        tunnel.close()


class SiteTunnel(Executor):
    """The end beside the participant: listens on this machine only, lives as long as the server's end is heard.

    Of two jobs of one site one listens, and the other does when that has gone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stop = threading.Event()
        self.register_event_handler(EventType.START_RUN, self._begin)
        self.register_event_handler(EventType.END_RUN, self._end)

    def execute(self, *_: Any, **__: Any) -> Any:
        """There are no tasks."""
        return make_reply(ReturnCode.TASK_UNKNOWN)

    def _begin(self, _: str, fl_ctx: Any) -> None:
        link = _Link(fl_ctx, FQCN.ROOT_SERVER)
        tunnel = Tunnel(link.send)
        link.listen(tunnel)
        for run in (self._watch, self._listen):
            threading.Thread(target=run, args=(tunnel,), name="hubbub-tunnel", daemon=True).start()

    def _end(self, *_: Any) -> None:
        self._stop.set()

    def _watch(self, tunnel: Tunnel) -> None:
        while not (self._stop.is_set() or tunnel.is_lost):
            tunnel.beat()
            self._stop.wait(BEAT_SECONDS)
        self._stop.set()
        tunnel.close()

    def _listen(self, tunnel: Tunnel) -> None:
        listener = _listener(_address(), self._stop)
        while listener and not self._stop.is_set():
            with suppress(TimeoutError):
                tunnel.open(listener.accept()[0])
        if listener:
            listener.close()


def _address() -> tuple[str, int]:
    host, _, port = os.environ[ADDRESS].rpartition(":")
    return host, int(port)


def _connected(address: tuple[str, int]) -> socket.socket:
    local = socket.create_connection(address, timeout=5)
    local.settimeout(None)
    return local


def _listener(address: tuple[str, int], stop: threading.Event) -> socket.socket | None:
    """Listen on this machine, as soon as no other job of this site does; None when told to stop first."""
    if address[0] not in _HERE:
        raise ValueError(f"{ADDRESS} must name this machine, so that only it can use the tunnel")
    while not stop.wait(0.1):
        with suppress(OSError):
            listener = socket.create_server(address)
            listener.settimeout(0.2)
            return listener
    return None
