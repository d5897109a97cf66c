"""Messages cut into frames, and put together again.

A frame is a call's identity (16 random bytes), one byte of flags, and at most `CHUNK` bytes of the message. Frames of
one message follow each other; every frame but the last is full, so a message has one form on the wire. A frame that
begins a message gives up whatever was unfinished before it: that is how a sender abandons a message.
"""

import mmap
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

CHUNK = 1 << 20
_HEADER = struct.Struct(">16sB")
LARGEST = _HEADER.size + CHUNK
"""Bytes of a frame at most."""
_FIRST, _LAST, _NONE = 1, 2, 4


class PipeError(Exception):
    """A stream must end.

    Args:
        word: Why: a code word, which is all that is sent of it.
    """

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word


def frames(call: bytes, message: bytes | memoryview) -> Iterator[bytes]:
    """Cut a message into frames; at no time is more than one chunk of it copied."""
    view = memoryview(message)
    flags = _FIRST
    for start in range(0, max(len(view), 1), CHUNK):
        flags |= _LAST if start + CHUNK >= len(view) else 0
        yield b"".join((_HEADER.pack(call, flags), view[start : start + CHUNK]))
        flags = 0


def no_answer(call: bytes) -> bytes:
    """Make the frame that says that a question will not be answered."""
    return _HEADER.pack(call, _NONE)


@dataclass(frozen=True)
class Spool:
    """Where large messages lie.

    Args:
        folder: Made when it is needed; files in it have no name, so that nothing of them outlives the process.
        above: Bytes; shorter messages stay in memory.
    """

    folder: Path
    above: int = 4 << 20

    def open(self) -> IO[bytes]:
        """Open a new file in it."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        return tempfile.TemporaryFile(dir=self.folder)


class Body:
    """A message as far as it has come.

    Args:
        spool: Where it lies when it is large; None: in memory.
    """

    def __init__(self, spool: Spool | None) -> None:
        self.size = 0
        self._spool = spool
        self._chunks: list[memoryview] = []
        self._file: IO[bytes] | None = None

    def add(self, chunk: memoryview) -> None:
        """Append some bytes."""
        self.size += len(chunk)
        self._chunks.append(chunk)
        if self._spool is None or self.size <= self._spool.above:
            return
        if self._file is None:
            self._file = self._spool.open()
        for kept in self._chunks:
            self._file.write(kept)
        self._chunks = []

    def view(self) -> bytes | memoryview:
        """Give the message up, once: a large one as pages of a file that is gone when the view is."""
        if self._file is None:
            return self.read()
        self._file.flush()
        view = memoryview(mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ))
        self.discard()
        return view

    def read(self) -> bytes:
        """Give the message up, once, as bytes; a spooled one is in memory no more than once."""
        if self._file is None:
            chunks, self._chunks = self._chunks, []
            return b"".join(chunks)
        self._file.seek(0)
        message = self._file.read(self.size)
        self.discard()
        return message

    def discard(self) -> None:
        """Let go of it."""
        self._chunks = []
        if self._file is not None:
            self._file.close()
            self._file = None


class Assembly:
    """Puts the messages of one stream together.

    Args:
        limit: Bytes of one message at most.
        spool: Where large messages lie.
        is_wanted: Whether a call's message is to be kept; what is not wanted is counted and dropped.

    Guarantees:
        For any bytes, either frames of whole messages come out as they went in, or `PipeError` is raised.
    """

    def __init__(self, limit: int, spool: Spool | None, is_wanted: Callable[[bytes], bool]) -> None:
        self._limit, self._spool, self._is_wanted = limit, spool, is_wanted
        self._call: bytes | None = None
        self._size = 0
        self._body: Body | None = None

    def add(self, frame: bytes) -> tuple[bytes, Body | None] | None:
        """Take one frame.

        Returns:
            The call and its message when that is whole, (call, None) when there will be none.

        Raises:
            PipeError: "garbage" or "oversize".
        """
        if not _HEADER.size <= len(frame) <= LARGEST:
            raise PipeError("garbage")
        call, flags = _HEADER.unpack_from(frame)
        chunk = memoryview(frame)[_HEADER.size :]
        if flags == _NONE and not chunk:
            self.discard()
            return call, None
        if flags & _FIRST:
            self.discard()
            self._call, self._body = call, Body(self._spool)
        is_last = bool(flags & _LAST)
        if flags > _FIRST | _LAST or call != self._call or not (is_last or len(chunk) == CHUNK):
            raise PipeError("garbage")
        self._keep(call, chunk)
        return self._finished(call) if is_last else None

    def _keep(self, call: bytes, chunk: memoryview) -> None:
        self._size += len(chunk)
        if self._size > self._limit:
            raise PipeError("oversize")
        if self._body is not None and not self._is_wanted(call):
            self._body.discard()
            self._body = None
        if self._body is not None:
            self._body.add(chunk)

    def _finished(self, call: bytes) -> tuple[bytes, Body] | None:
        body, self._body = self._body, None
        self.discard()
        return None if body is None else (call, body)

    def discard(self) -> None:
        """Give up what is unfinished."""
        if self._body is not None:
            self._body.discard()
        self._call, self._body, self._size = None, None, 0


def whole(incoming: Iterable[bytes], assembly: Assembly) -> bytes:
    """Read one message from a stream.

    Raises:
        PipeError: "garbage" or "oversize"; also when the stream ends before the message.
    """
    try:
        for frame in incoming:
            arrived = assembly.add(frame)
            if arrived is not None and arrived[1] is not None:
                return arrived[1].read()
    finally:
        assembly.discard()
    raise PipeError("garbage")
