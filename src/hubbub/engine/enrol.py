"""Whom a coordinator lets in: memberships for those whose cards are known."""

from collections.abc import Sequence
from pathlib import Path

from hubbub.engine.home import open_authority, open_coordinator_key, open_log, open_log_key
from hubbub.governance import Federation
from hubbub.governance.certificates import YEAR, Request
from hubbub.governance.enrolment import Admission, Membership, admission, check_address


def admit(
    home: Path, requests: Sequence[Request], *, address: str, now: int, days: int = YEAR
) -> dict[str, Membership]:
    """A membership for each request, by name: all of them, or none if one is refused.

    Args:
        home: The coordinator's: its log says whose cards are known, its authority signs.
        requests: As `read_request` found them.
        address: HOST:PORT where members dial the coordinator.
        now: POSIX seconds.
        days: How long certificates are good.

    Raises:
        RefusedError: A request is for no card that is in force or asked for; its name is named.
        InputError: Address, days or a file of the home are wrong.
    """
    check_address(address)
    log = open_log(home)
    try:
        state, key = log.fold(Federation), open_log_key(home).verifier
    finally:
        log.close()
    admitted = [admission(request, state, key) for request in requests]
    authority, coordinator = open_authority(home, now=now), open_coordinator_key(home).public.hex()

    def membership(request: Request, known: Admission) -> Membership:
        return Membership(
            address=address,
            authority=authority.certificate.decode(),
            certificate=authority.admit(request, now=now, days=days).decode(),
            log=str(key),
            coordinator=coordinator,
            federation=known.federation,
            policy=bytes(known.policy).decode(),
        )

    return {request.name: membership(request, known) for request, known in zip(requests, admitted, strict=True)}
