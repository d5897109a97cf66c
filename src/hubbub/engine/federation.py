"""Keys, roster and sessions of secure aggregation where everybody lives in one process.

Keys are made for one run and forgotten with it: in one process they protect nobody from whoever runs it. What
they are for is that a run here and a run across hosts send the same bytes.
"""

import hashlib
import secrets
from collections.abc import Callable

import msgspec

from hubbub.coordinator.sums import MakeSum, PlainSum, SecureSum, Sum
from hubbub.participant.site import Charge
from hubbub.planning import Plan
from hubbub.secagg import SUITE, Client, Member, Roster, Server, Session, SigningKey
from hubbub.secagg.keys import KEY_BYTES
from hubbub.secagg.parameters import Parameters

LOG = "sandbox"
Head = Callable[[], tuple[int, bytes]]
"""Size and root of the record of this run, as it is now."""


class Federation:
    """Everybody's keys in one run, and what its sessions are bound to.

    Args:
        plan: The approved plan.
        parameters: Its thresholds.
        number: Number of the run in the ledger.
        head: The record's size and root.
    """

    def __init__(self, plan: Plan, parameters: Parameters, *, number: int, head: Head) -> None:
        self._plan = plan
        self._plan_hash = bytes.fromhex(plan.hash)
        self._parameters = parameters
        self._number = number
        self._head = head
        self._key = SigningKey(secrets.token_bytes(KEY_BYTES))
        self._keys = {name: SigningKey(secrets.token_bytes(KEY_BYTES)) for name in plan.slots}
        members = [Member(name, name, key.public) for name, key in self._keys.items()]
        self._roster = Roster(members)
        self._roster_hash = hashlib.sha256(msgspec.json.encode(members)).digest()

    def session(self, round_number: int, attempt: int, model: bytes) -> Session:
        """What one attempt's session is bound to, as any honest party knows it."""
        size, root = self._head()
        return Session(
            suite=SUITE,
            coordinator=self._key.public,
            study=self._plan.study,
            plan=self._plan_hash,
            run=self._number,
            parameters=self._parameters.hash,
            roster_epoch=1,
            roster=self._roster_hash,
            payload="update",
            round_number=round_number,
            attempt=attempt,
            model=hashlib.sha256(model).digest(),
            log_origin=LOG,
            log_size=size,
            log_root=root,
        )

    def make_sum(self, round_number: int, attempt: int, model: bytes) -> Sum:
        """The coordinator's half of one attempt."""
        session = self.session(round_number, attempt, model)
        return SecureSum(Server(session, key=self._key, roster=self._roster, parameters=self._parameters))

    def client(self, name: str, charge: Charge) -> Client:
        """One participant's half, for the whole run."""
        return Client(
            name,
            key=self._keys[name],
            roster=self._roster,
            parameters=self._parameters,
            mark=_forget,
            charge=charge,
        )


def elided(plan: Plan) -> MakeSum:
    """Sums in the clear in place of secure ones: the same bits, and whoever runs this sees every vector."""

    def make_sum(_round: int, _attempt: int, _model: bytes) -> Sum:
        return PlainSum(tuple(plan.slots), dimension=plan.mechanism.length, minimum=plan.minimum)

    return make_sum


def _forget(_run: int, _round: int, _attempt: int) -> None:
    """Keep no mark on disk: a run in one process never resumes, so nothing can be asked for again."""
