"""Keys, roster and sessions of secure aggregation where everybody lives in one process.

Keys are made for one run and forgotten with it: in one process they protect nobody from whoever runs it. What
they are for is that a run here and a run across hosts send the same bytes.
"""

import hashlib
import secrets

import msgspec

from hubbub.coordinator.sums import MakeSum, PlainSum, SecureSum, Sum
from hubbub.eventlog import EventLog
from hubbub.participant.site import Charge, Masking
from hubbub.planning import Plan
from hubbub.secagg import SUITE, Client, Member, Roster, Server, Session, SigningKey
from hubbub.secagg.keys import KEY_BYTES
from hubbub.secagg.parameters import Parameters


class Federation:
    """Everybody's keys in one run, and what its sessions are bound to.

    Args:
        plan: The approved plan.
        parameters: Its thresholds.
        number: Number of the run in the ledger.
        log: The log that records the run.
        origin: Its name.
    """

    def __init__(self, plan: Plan, parameters: Parameters, *, number: int, log: EventLog, origin: str) -> None:
        self._plan = plan
        self._plan_hash = bytes.fromhex(plan.hash)
        self._parameters = parameters
        self._number = number
        self._log = log
        self._origin = origin
        self._sessions: dict[tuple[int, int, bytes], Session] = {}
        self._key = SigningKey(secrets.token_bytes(KEY_BYTES))
        self._keys = {name: SigningKey(secrets.token_bytes(KEY_BYTES)) for name in plan.slots}
        members = [Member(name, name, key.public) for name, key in self._keys.items()]
        self._roster = Roster(members)
        self._roster_hash = hashlib.sha256(msgspec.json.encode(members)).digest()

    def session(self, round_number: int, attempt: int, model: memoryview) -> Session:
        """What one attempt's session is bound to, as any honest party knows it; in one process, alike for all."""
        key = (round_number, attempt, hashlib.sha256(model).digest())
        if key not in self._sessions:
            self._sessions = {key: self._bind(*key)}
        return self._sessions[key]

    def _bind(self, round_number: int, attempt: int, model_hash: bytes) -> Session:
        size = self._log.store.size
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
            model=model_hash,
            log_origin=self._origin,
            log_size=size,
            log_root=self._log.store.root(size),
        )

    def make_sum(self, round_number: int, attempt: int, model: memoryview) -> Sum:
        """The coordinator's half of one attempt."""
        session = self.session(round_number, attempt, model)
        return SecureSum(Server(session, key=self._key, roster=self._roster, parameters=self._parameters))

    def masking(self, name: str, charge: Charge) -> Masking:
        """One participant's half, for the whole run."""
        client = Client(
            name,
            key=self._keys[name],
            roster=self._roster,
            parameters=self._parameters,
            mark=_forget,
            charge=charge,
        )
        return Masking(client, self.session)


def elided(plan: Plan) -> MakeSum:
    """Sums in the clear in place of secure ones: the same bits, and whoever runs this sees every vector."""

    def make_sum(_round: int, _attempt: int, _model: memoryview) -> Sum:
        return PlainSum(tuple(plan.slots), dimension=plan.mechanism.length, minimum=plan.minimum)

    return make_sum


def _forget(_run: int, _round: int, _attempt: int) -> None:
    """Keep no mark on disk: a run that goes on does so with new keys, under which no session can be asked for again."""
