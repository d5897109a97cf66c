"""What a verification found, each check as it passes."""

from collections.abc import Generator

from rich.console import Console

from hubbub.cli import show
from hubbub.release import ReleaseClaim
from hubbub.release.verify import Check


def verified(checks: Generator[Check, None, ReleaseClaim], *, as_json: bool) -> None:
    """Print checks until the first that fails raises; then what was claimed."""
    out, passed = Console(highlight=False), list[Check]()
    while True:
        try:
            check = next(checks)
        except StopIteration as done:
            claim: ReleaseClaim = done.value
            break
        passed.append(check)
        if not as_json:
            out.print(f"  [green]ok[/]  [bold]{check.what:<17}[/]{check.found}", soft_wrap=True)
    if as_json:
        show.json({"verified": True, "checks": [vars(check) for check in passed], "claim": claim})
    else:
        out.print(f"\nverified: {claim.sentence}\n{claim.federation}", soft_wrap=True)
