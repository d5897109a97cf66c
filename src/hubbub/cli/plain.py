"""Text that strangers wrote, as no terminal obeys it; where tables go; JSON for a machine.

Names, texts and notes come out of logs and bundles: a control character in one could hide a line or paint a green "ok".
"""

import datetime as dt
import os
import re
import sys
from collections.abc import Collection, Sequence

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

FOLDED = 7
"""Signs of a folded column that stand on one line in the narrowest terminal."""
_UNWRAPPED = 10_000
_OBEYED = re.compile(r"[^\n\x20-\x7e]")


def plain(text: str) -> str:
    """A text with everything that is neither printable nor a new line written out."""
    return _OBEYED.sub(lambda found: _written(found[0]), text)


def utc(seconds: int, form: str = "%Y-%m-%d %H:%M") -> str:
    """A time that a stranger stated, in POSIX seconds; there are more of these than days in any calendar."""
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime(form)
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s after 1970"


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


def print_rows(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, folded: Collection[str], right: Collection[str] = ()
) -> None:
    """Print a table: in a narrow terminal some columns fold, and the others are whole, if need be beyond the edge."""
    out = console()
    longest = {column[0]: max(map(len, column)) for column in zip(headers, *rows, strict=True)}
    least = {header: min(width, FOLDED) if header in folded else width for header, width in longest.items()}
    edges = len(headers) + 1
    padding = int(sum(longest.values()) + len(headers) + edges <= out.width)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, padding, 0, 0))
    for header, width in least.items():
        side = "right" if header in right else "left"
        table.add_column(header, no_wrap=header not in folded, overflow="fold", min_width=width, justify=side)
    for row in rows:
        table.add_row(*map(cell, row))
    out.width = max(out.width, sum(least.values()) + edges)
    out.print(table)


def json(value: object) -> None:
    """Print a value as one JSON document."""
    sys.stdout.write(plain(msgspec.json.format(msgspec.json.encode(value), indent=1).decode()) + "\n")


def _written(sign: str) -> str:
    if sign.isprintable():
        return sign
    digits = sign.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{digits[at : at + 4]}" for at in range(0, len(digits), 4))
