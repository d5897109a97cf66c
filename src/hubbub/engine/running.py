"""One run from its reservation to its claim: the same wherever its participants are.

begin -> (attempt: ask, add up, step) x T -> settle -> claim

What differs between a run in this process and one across hosts is behind `Sites`. A run that was interrupted goes
on from its last closed round: what was charged stays charged, and whatever is asked again is a new attempt with
fresh samples and fresh noise.
"""

import importlib.metadata
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import msgspec
import numpy as np
from jaxtyping import Float32

from hubbub.accounting.accounts import RunAccount
from hubbub.accounting.ledger import Ledger
from hubbub.coordinator import Coordinator, Progress
from hubbub.coordinator.sums import MakeSum
from hubbub.engine.folder import RunFacts, RunFolder
from hubbub.engine.permission import Permission
from hubbub.engine.prepare import Prepared
from hubbub.engine.record import Record, Watch, events_of
from hubbub.errors import HubbubError, RefusedError, StoppedError, WaitingError, WorkerError, typed
from hubbub.eventlog import EventLog
from hubbub.events import (
    NOT_PRIVATE,
    AnyEvent,
    BudgetCharged,
    BudgetReserved,
    Evaluated,
    ParticipantJoined,
    RoundClosed,
    RoundFailed,
    RunFinished,
    RunResumed,
    RunStarted,
)
from hubbub.observe import write_report
from hubbub.planning import Plan
from hubbub.randomness import OperatingSystemRandomness, Randomness
from hubbub.release import claim_from_log
from hubbub.release.bundle import as_json
from hubbub.tlog import Signer, sign_checkpoint

Secagg = Literal["run", "elide", "none"]
Hosts = Literal["one", "own"]
EVALUATIONS = 100
"""Most points at which a run is measured on the test records."""


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did and cost; also the JSON that `hubbub run --json` prints.

    Args:
        run: The run's name.
        rounds: Rounds closed.
        participants: Size of the roster.
        epsilon_spent: Cost of the attempts charged in this run; None is infinite.
        epsilon_planned: Cost of all T + R attempts.
        epsilon_budget: The study's epsilon.
        delta: The study's delta.
        metrics: Of the final model, on the test records.
        goals: What the study's success criteria ask of these metrics.
        is_success: Whether the study's success criteria are met; None if it has none.
        wall_seconds: Duration.
        log_size: Entries of the transparency log when the run had ended.
        log_root: Its root hash then, in hexadecimal.
        out: The run directory.
        home: The folder whose log it is in.
        standing: Who stands behind it: nobody, in a sandbox.
        had_ended: Whether it had ended before: then nothing was trained, and its result is told again.
    """

    run: str
    rounds: int
    participants: int
    epsilon_spent: float | None
    epsilon_planned: float | None
    epsilon_budget: float | None
    delta: float
    metrics: dict[str, float]
    goals: dict[str, float]
    is_success: bool | None
    wall_seconds: float
    log_size: int
    log_root: str
    out: str
    home: str
    standing: str
    had_ended: bool = False


@runtime_checkable
class Sites(Protocol):
    """The participants of one run, wherever they are.

    Attributes:
        hosts: Whether they are on one host, in this process, or each on its own.
    """

    hosts: Hosts

    def secagg(self, plan: Plan) -> Secagg:
        """Whether sums are secure, in the clear though the plan says secure, or in the clear by plan."""
        ...

    def begin(self, running: "Running", start: Progress, record: Record) -> MakeSum | None:
        """Bring the participants into a run that is about to go on from `start`.

        Returns:
            How an attempt adds up; None in the clear, where the plan allows that.
        """
        ...

    def attempt(self, coordinator: Coordinator) -> RoundClosed | RoundFailed:
        """One attempt at one round: carry messages to and fro until there is nothing more to send."""
        ...

    def evaluate(self, prepared: Prepared, parameters: Float32[np.ndarray, " params"]) -> dict[str, float]:
        """A model's metrics on the test records, which are where the coordinator is."""
        ...


@dataclass
class Running:
    """One run, from its reservation to its claim, wherever its participants are.

    Args:
        prepared: The study; its slots are empty where participants are elsewhere.
        plan: Its plan.
        facts: Where it belongs.
        folder: Its directory.
        log: What records it.
        key: Of the log.
        randomness: Of secret cohorts and of server noise, and in one process of everybody.
        commitments: To each participant's records.
        sites: Its participants.
    """

    prepared: Prepared
    plan: Plan
    facts: RunFacts
    folder: RunFolder
    log: EventLog
    key: Signer
    randomness: Randomness
    commitments: dict[str, str]
    sites: Sites

    @property
    def name(self) -> str:
        """The run's name."""
        return self.facts.run

    @property
    def ledger(self) -> Ledger:
        """The budgets in the log."""
        return Ledger(self.log)

    @property
    def permission(self) -> Permission:
        """What the federation says of this run."""
        return Permission(self.log, self.plan, self.prepared.study.settings, self.commitments)

    # --- beginning and going on ---

    def reserve(self) -> None:
        """Make the run directory and set the budget aside, or neither."""
        self.folder.make()
        try:
            self.folder.write_start(self.facts, self.prepared.study, self.plan)
            sandbox_delta = self.plan.delta if self.permission.is_sandbox else None
            self.ledger.reserve(self._reservation(), sandbox_delta=sandbox_delta, permit=self.permission.grant)
        except (HubbubError, OSError):
            self.folder.remove()
            raise

    def run(self, watch: Watch | None, started: float) -> RunResult:
        """Train from where the run is to its end."""
        before = events_of(self.log, self.name)
        had_ended = any(isinstance(event, RunFinished) for event in before)
        progress, new = self._begin(before)
        record = Record(self.folder, self.plan, self.log, watch=watch, before=before)
        try:
            if not had_ended:
                record.append(*new)
                self.log.flush()
                self._measure(record, progress)
                coordinator = self._coordinator(record, progress)
                del progress  # or the first model would stay beside the newest
                self._finish(record, self._train(record, coordinator))
            elif not self.ledger.accounts().runs[self.name].is_settled:  # Ctrl-C came between the two
                record.copy(self.ledger.settle(self.name))
        except KeyboardInterrupt:
            raise self._stopped(record) from None
        except WorkerError as error:
            stopped = self._stopped(record)
            raise WorkerError(f"{error.message}; {stopped.message}", hint=f"{error.hint}; {stopped.hint}") from None
        except WaitingError as error:
            raise WaitingError(error.message, hint=f"{error.hint} {typed(self.folder.path)}") from None
        except HubbubError:
            record.copy(self.ledger.settle(self.name))
            raise
        finally:
            record.close()
        return msgspec.structs.replace(self._result(record, started), had_ended=had_ended)

    def _begin(self, before: Sequence[AnyEvent]) -> tuple[Progress, list[AnyEvent]]:
        """Where a run goes on from, and what is to be recorded about that."""
        opening = self._opening()
        start = Progress(self.prepared.learner.initial())
        has_started = any(isinstance(event, RunStarted) for event in before)
        account = self._account(before, [*(opening if has_started else ()), self._reservation()])
        if not account.is_settled:
            self.permission.grant()
        if not has_started:
            return start, opening
        closed = [event for event in before if isinstance(event, RoundClosed)]
        progress, last = self.folder.read_snapshot(self.plan, len(closed)) or (start, None)
        missing = [last] if last is not None and last not in closed else []
        is_charged = last is None or (last.run == self.name and (last.round_number, last.attempt) in account.charged)
        if progress.round_number != len(closed) + len(missing) + 1 or not is_charged:
            raise self._refusal(
                f"must have its snapshot of round {len(closed)}", f"one of round {progress.round_number - 1}"
            )
        at = progress.round_number
        asked = [attempt for round_number, attempt in account.charged if round_number == at]
        failed = sum(isinstance(event, RoundFailed) and event.round_number == at for event in before)
        progress = replace(
            progress, attempt=max(asked, default=0), failures=len(account.charged) - len(closed) - len(missing)
        )
        resumed = RunResumed(run=self.name, round_number=at, attempts_lost=max(len(asked) - failed, 0))
        return progress, [*missing, resumed]

    def _account(self, before: Sequence[AnyEvent], bound: Sequence[AnyEvent]) -> RunAccount:
        """The run's reservation, if the run may go on and everything that it is bound to is as it was."""
        account = self.ledger.accounts().runs.get(self.name)
        if account is None:
            raise RefusedError(
                f"run {self.name}, must hold a reservation in the log of {self.facts.home} to go on, found none: it "
                "was interrupted before it made one, or that log is another's; nothing trained, nothing spent",
                hint="start a new run, if this was its home",
            )
        if account.is_settled and not any(isinstance(event, RunFinished) for event in before):
            raise RefusedError(
                f"run {self.name}, must be open to go on, found that it was given up; nothing trained, nothing spent",
                hint=f"{typed('hubbub', 'run', self.facts.study or 'STUDY')} starts a new one",
            )
        was = {(type(event), getattr(event, "participant", "")): event for event in before}
        for event in bound:
            known = was.get((type(event), getattr(event, "participant", "")))
            for name in event.__struct_fields__:
                if name != "versions" and getattr(known, name, None) != getattr(event, name):
                    raise self._refusal(f"must go on with the {name.replace('_', ' ')} that it began with", "another")
        return account

    def _refusal(self, rule: str, found: str) -> RefusedError:
        return RefusedError(
            f"run {self.name}, {rule}, found {found}; nothing trained, nothing spent",
            hint="restore what was changed, or give the run up: " + typed("hubbub", "stop", self.folder.path),
        )

    def _stopped(self, record: Record) -> StoppedError:
        rounds = sum(isinstance(event, RoundClosed) for event in record.events)
        return StoppedError(
            f"run {self.name}, was stopped after round {rounds} of {self.plan.rounds}; what was charged stays charged, "
            "the rest of its budget stays reserved",
            hint=f"hubbub resume {typed(self.folder.path)}, or give it up: hubbub stop {typed(self.folder.path)}",
        )

    def _opening(self) -> list[AnyEvent]:
        """What a run says about itself first."""
        start = RunStarted(
            run=self.name,
            study=self.plan.study,
            plan_hash=self.plan.hash,
            code_hash=self.plan.code_hash,
            noise_source=self.noise_source,
            secagg=self.sites.secagg(self.plan),
            hosts=self.sites.hosts,
            is_test_public=self.prepared.is_test_public,
            versions=_versions(),
        )
        joined: list[AnyEvent] = [
            ParticipantJoined(run=self.name, participant=name, slots=slots, data_commitment=self.commitments[name])
            for name, slots in self.plan.slots.items()
        ]
        return [start, *joined]

    def _reservation(self) -> BudgetReserved:
        """What this run costs: noise that somebody can repeat protects nobody, whatever its size."""
        reserved = self.plan.reservation(self.name, self.permission.accounts())
        return reserved if self.noise_source == "os" else msgspec.structs.replace(reserved, dp_event=NOT_PRIVATE)

    @property
    def noise_source(self) -> str:
        """Where the noise came from: only "os" can be certified."""
        mechanism = self.plan.mechanism
        if not mechanism.sigma:
            return "none"
        if mechanism.noise_source != "os":
            return mechanism.noise_source
        return "os" if type(self.randomness) is OperatingSystemRandomness else "injected"

    # --- rounds ---

    def _coordinator(self, record: Record, start: Progress) -> Coordinator:
        return Coordinator(
            self.name,
            settings=self.prepared.study.settings,
            plan=self.plan,
            start=start,
            randomness=self.randomness,
            make_sum=self.sites.begin(self, start, record),
        )

    def _train(self, record: Record, coordinator: Coordinator) -> Float32[np.ndarray, " params"]:
        while not coordinator.is_finished:
            self.permission.check_going_on(self.name, coordinator.round_number - 1)
            closed = self.sites.attempt(coordinator)
            if isinstance(closed, RoundClosed):
                self.folder.write_snapshot(coordinator.progress, closed)
            record.append(closed)
            self._measure(record, coordinator.progress)
        return coordinator.parameters

    def _measure(self, record: Record, progress: Progress) -> None:
        """After some rounds, and the last: how good the model is, measured once."""
        done = progress.round_number - 1
        every = max(1, self.plan.rounds // EVALUATIONS)
        if done > record.measured and (done == self.plan.rounds or done % every == 0):
            measured = self.sites.evaluate(self.prepared, progress.parameters)
            metrics = {name: value for name, value in measured.items() if math.isfinite(value)}
            record.append(Evaluated(run=self.name, round_number=done, metrics=metrics))

    def charge(self, record: Record, round_number: int, attempt: int) -> None:
        """Charge all datasets for an attempt, durably, the first time somebody asks."""
        if (round_number, attempt) != record.charged:  # everybody asks, the first one charges for all
            self.ledger.charge(self.name, round_number, attempt)
            record.copy(BudgetCharged(run=self.name, round_number=round_number, attempt=attempt))

    # --- the end ---

    def _finish(self, record: Record, parameters: Float32[np.ndarray, " params"]) -> None:
        model_hash = self.folder.write_model(self.prepared.learner.export(parameters))
        record.append(RunFinished(run=self.name, rounds=self.plan.rounds, model_hash=model_hash))
        record.copy(self.ledger.settle(self.name))

    def _result(self, record: Record, started: float) -> RunResult:
        claim = claim_from_log(self.log.events(), self.name, self.plan, self.prepared.study.settings)
        self.folder.write("claim.json", as_json(claim))
        write_report(self.folder.path / "report.html", self.plan, claim, record.events)
        self.folder.write("checkpoint", bytes(sign_checkpoint(self.log.store, self.key)))
        return RunResult(
            run=self.name,
            rounds=claim.rounds,
            participants=len(self.plan.slots),
            epsilon_spent=claim.epsilon_spent,
            epsilon_planned=claim.epsilon_planned,
            epsilon_budget=self.prepared.study.settings.privacy.epsilon,
            delta=claim.delta,
            metrics=claim.metrics,
            goals=claim.success,
            is_success=claim.is_success,
            wall_seconds=round(time.monotonic() - started, 3),
            log_size=self.log.store.size,
            log_root=self.log.store.root().hex(),
            out=str(self.folder.path),
            home=self.facts.home,
            standing=claim.federation,
        )


def _versions() -> dict[str, str]:
    names = ("hubbub", "numpy", "dp-accounting", "cryptography", "torch")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
