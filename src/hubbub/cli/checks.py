"""What a verification found, each check as it passes."""

from collections.abc import Generator

from rich.text import Text

from hubbub.cli.plain import console, json, plain
from hubbub.release import ReleaseClaim
from hubbub.release.verify import COMPUTED, Check


def verified(checks: Generator[Check, None, ReleaseClaim], *, as_json: bool) -> None:
    """Print checks until the first that fails raises; then what was claimed."""
    out, passed = console(), list[Check]()
    while True:
        try:
            check = next(checks)
        except StopIteration as done:
            claim: ReleaseClaim = done.value
            break
        passed.append(check)
        if not as_json:
            line = Text.assemble("  ", ("ok", "green"), "  ", (f"{check.what:<17}", "bold"), plain(check.found))
            out.print(line, soft_wrap=True)
    is_computed = any(check.what == COMPUTED for check in passed)
    if as_json:
        checks_ = [vars(check) for check in passed]
        json({"verified": True, "recomputed": is_computed, "checks": checks_, "claim": claim})
    else:
        head = "verified" if is_computed else "verified, but for plan and claim, which were not computed again"
        out.print(Text(f"\n{head}: {plain(claim.sentence)}\n{plain(claim.federation)}"), soft_wrap=True)
