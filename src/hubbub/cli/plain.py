"""Text that strangers wrote, as no terminal obeys it; where tables go; JSON for a machine.

Names, texts and notes come out of logs and bundles: a control character in one could hide a line or paint a green "ok".
"""

import os
import re
import sys

import msgspec
from rich.console import Console
from rich.text import Text

_UNWRAPPED = 10_000
_OBEYED = re.compile(r"[^\n\x20-\x7e]")


def plain(text: str) -> str:
    """A text with everything that is neither printable nor a new line written out."""
    return _OBEYED.sub(lambda found: _written(found[0]), text)


def cell(value: object) -> Text:
    """What a table shows, without any markup in it taken as such."""
    return Text(plain(str(value)), overflow="fold")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read has seen enough: rich would end with exit code 1, which is for refusals."""
        raise BrokenPipeError


def console() -> Console:
    """Standard output: as wide as the terminal, and what goes to a file or another program is not wrapped."""
    is_shown = sys.stdout.isatty() or "COLUMNS" in os.environ
    return _Console(width=None if is_shown else _UNWRAPPED, highlight=False)


def json(value: object) -> None:
    """Print a value as one JSON document."""
    sys.stdout.write(plain(msgspec.json.format(msgspec.json.encode(value), indent=1).decode()) + "\n")


def _written(sign: str) -> str:
    if sign.isprintable():
        return sign
    digits = sign.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{digits[at : at + 4]}" for at in range(0, len(digits), 4))
