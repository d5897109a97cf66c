"""Run a study with everybody in this process.

check -> plan -> reserve -> (round: ask, train, clip, encode, add up, noise, step) x T -> settle -> claim

A run that was interrupted goes on from its last closed round: what was charged stays charged, and whatever
is asked again is a new attempt with fresh samples and fresh noise.
"""

import hashlib
import importlib.metadata
import math
import platform
import secrets
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from jaxtyping import Float32
from safetensors.numpy import save

from hubbub.accounting.accounts import RunAccount
from hubbub.accounting.ledger import Ledger
from hubbub.coordinator import Coordinator, Progress
from hubbub.engine.federation import Federation, elided
from hubbub.engine.folder import RunFacts, RunFolder
from hubbub.engine.home import home_folder, open_log, open_log_key, salts
from hubbub.engine.permission import Permission
from hubbub.engine.prepare import Prepared, prepare
from hubbub.engine.record import Record, Watch, events_of
from hubbub.errors import HubbubError, InputError, RefusedError, StoppedError, WaitingError
from hubbub.eventlog import EventLog
from hubbub.events import (
    NOT_PRIVATE,
    AnyEvent,
    BudgetCharged,
    BudgetReserved,
    BudgetSettled,
    Evaluated,
    ParticipantJoined,
    RoundClosed,
    RoundFailed,
    RunFinished,
    RunResumed,
    RunStarted,
)
from hubbub.observe import write_report
from hubbub.participant import Participant, commit
from hubbub.planning import Plan, make_plan
from hubbub.randomness import OperatingSystemRandomness, Randomness, SeededRandomness
from hubbub.release import claim_from_log
from hubbub.release.bundle import as_json
from hubbub.study import Study, load_study
from hubbub.tlog import Signer, sign_checkpoint

FORMAT = 1
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


def run(
    study: Study,
    *,
    out: str | Path | None = None,
    home: str | Path | None = None,
    watch: Watch | None = None,
    randomness: Randomness | None = None,
) -> RunResult:
    """Train a study's model under its plan, and write the run directory.

    Args:
        study: The study.
        out: Run directory, not there yet. Default: `runs/RUN` beside the study.
        home: Where log and salts live. Default: HUBBUB_HOME, or `.hubbub` beside the study.
        watch: Called with each event and the plan, as it happens.
        randomness: For tests and simulations: another source than the operating system. The claim then
            says "not certifiable".

    Raises:
        StudyError, CodeError, PlanError: The study is wrong; nothing trained, nothing spent.
        BudgetError: A dataset's budget does not admit the plan; nothing trained, nothing spent.
        RoundError: The plan's retries are used up.
        RefusedError: The federation has not approved it; nothing trained, nothing spent.
        WaitingError: A review has to be passed; `resume` goes on.
        StoppedError: Ctrl-C was pressed; `resume` goes on.
    """
    started = time.monotonic()
    prepared = prepare(study)
    plan = make_plan(prepared.study)
    name = f"{plan.study}-{secrets.token_hex(4)}"
    folder = RunFolder(Path(out) if out is not None else (study.directory or Path()) / "runs" / name)
    home_path = Path(home) if home is not None else home_folder(study.directory)
    facts = RunFacts(
        format=FORMAT,
        run=name,
        study=None if study.directory is None else str(study.directory.resolve()),
        home=str(home_path.resolve()),
    )
    with _opened(home_path) as (log, key):
        commitments = _commitments(prepared, home_path)
        session = _Session(prepared, plan, facts, folder, log, key, _source(study, randomness), commitments)
        session.reserve()
        with folder.held():
            return session.run(watch, started)


def resume(
    folder: str | Path,
    *,
    study: Study | None = None,
    watch: Watch | None = None,
    randomness: Randomness | None = None,
) -> RunResult:
    """Go on with a run that was interrupted, from its last closed round.

    Args:
        folder: The run directory.
        study: For a study made in a notebook: the same study again.
        watch: Called with each event and the plan: those of before the interruption first.
        randomness: As in `run`; must be of the kind that the run began with.

    Guarantees:
        Whatever may have left a participant before stays charged. An attempt that was charged is never asked
        for again: its round is tried anew, with fresh samples and noise, as one of the plan's retries. Where
        neither is drawn, the final model has the bytes of an uninterrupted run.

    Raises:
        InputError: The folder is no run directory, or its snapshot is damaged.
        RefusedError: The run has ended, is being run, or its study changed; nothing trained, nothing spent.
    """
    started = time.monotonic()
    run_folder = RunFolder(Path(folder))
    facts = run_folder.facts()
    with run_folder.held():
        prepared = prepare(study or _study_of(facts))
        plan = make_plan(prepared.study)
        with _opened(Path(facts.home)) as (log, key):
            source = _source(prepared.study, randomness, again=len(events_of(log, facts.run)))
            commitments = _commitments(prepared, Path(facts.home))
            session = _Session(prepared, plan, facts, run_folder, log, key, source, commitments)
            return session.run(watch, started)


def stop(folder: str | Path) -> BudgetSettled:
    """Give up a run that was interrupted: what was charged stays charged, the rest of its budget returns.

    Raises:
        InputError: The folder is no run directory.
        RefusedError: The run has ended, or is being run.
    """
    run_folder = RunFolder(Path(folder))
    facts = run_folder.facts()
    with run_folder.held(), _opened(Path(facts.home)) as (log, _):
        return Ledger(log).settle(facts.run)


def _study_of(facts: RunFacts) -> Study:
    if facts.study is None:
        raise InputError(
            f"run {facts.run}, was made from functions in a notebook, found no study to go on with; nothing trained",
            hint="hubbub.resume(FOLDER, study=study)",
        )
    return load_study(facts.study)


def _commitments(prepared: Prepared, home: Path) -> dict[str, str]:
    """A salted commitment to each participant's records."""
    salt = salts(home, prepared.slots)
    return {name: commit(slots, salt[name]) for name, slots in prepared.slots.items()}


@contextmanager
def _opened(home: Path) -> Generator[tuple[EventLog, Signer]]:
    log = open_log(home)
    try:
        with _one_torch_thread():
            yield log, open_log_key(home)
    finally:
        log.close()


@contextmanager
def _one_torch_thread() -> Generator[None]:
    """Let torch work on one thread: the bits of a sum must not depend on how many cores there are."""
    torch = sys.modules.get("torch")  # not there with the ndarray hook
    before = torch.get_num_threads() if torch else 0
    try:
        if torch:
            torch.set_num_threads(1)
        yield
    finally:
        if torch:
            torch.set_num_threads(before)


def _source(study: Study, given: Randomness | None, again: int = 0) -> Randomness:
    """Where noise and samples come from; a simulation that goes on `again` must not repeat its noise."""
    if given is not None:
        return given
    if study.settings.privacy.noise_source == "float-simulation":
        return SeededRandomness(study.settings.study.seed + (again << 32), "float-simulation")
    return OperatingSystemRandomness()


@dataclass
class _Session:
    """One run in this process: the parties of a plan, and what records them."""

    prepared: Prepared
    plan: Plan
    facts: RunFacts
    folder: RunFolder
    log: EventLog
    key: Signer
    randomness: Randomness
    commitments: dict[str, str]

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
        self.folder.write_start(self.facts, self.prepared.study, self.plan)
        try:
            sandbox_delta = self.plan.delta if self.permission.is_sandbox else None
            self.ledger.reserve(self._reservation(), sandbox_delta=sandbox_delta, permit=self.permission.grant)
        except HubbubError:
            self.folder.remove()
            raise

    def run(self, watch: Watch | None, started: float) -> RunResult:
        """Train from where the run is to its end."""
        before = events_of(self.log, self.name)
        progress, new = self._begin(before)
        record = Record(self.folder, self.plan, self.log, watch=watch, before=before)
        try:
            if not any(isinstance(event, RunFinished) for event in before):
                record.append(*new)
                self.log.flush()
                self._measure(record, progress)
                self._finish(record, self._train(record, progress))
        except KeyboardInterrupt:
            raise self._stopped(record) from None
        except WaitingError as error:
            raise WaitingError(error.message, hint=f"{error.hint} {self.folder.path}") from None
        except HubbubError:
            record.copy(self.ledger.settle(self.name))
            raise
        finally:
            record.close()
        return self._result(record, started)

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
                f"run {self.name}, must hold a reservation to go on, found that it was interrupted before it made one; "
                "nothing trained, nothing spent",
                hint=f"start a new run; {self.folder.path} can be removed",
            )
        if account.is_settled and not any(isinstance(event, RunFinished) for event in before):
            raise self._refusal("must be open to go on", "that it was given up")
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
            hint="restore what was changed, or give the run up: hubbub stop " + str(self.folder.path),
        )

    def _stopped(self, record: Record) -> StoppedError:
        rounds = sum(isinstance(event, RoundClosed) for event in record.events)
        return StoppedError(
            f"run {self.name}, was stopped after round {rounds} of {self.plan.rounds}; what was charged stays charged, "
            "the rest of its budget stays reserved",
            hint=f"hubbub resume {self.folder.path}, or give it up: hubbub stop {self.folder.path}",
        )

    def _opening(self) -> list[AnyEvent]:
        """What a run says about itself first."""
        start = RunStarted(
            run=self.name,
            study=self.plan.study,
            plan_hash=self.plan.hash,
            code_hash=self.plan.code_hash,
            noise_source=self.noise_source,
            secagg=self.secagg,
            is_test_public=self.prepared.is_test_public,
            versions=_versions(),
        )
        joined: list[AnyEvent] = [
            ParticipantJoined(run=self.name, participant=name, slots=len(slots), data_commitment=self.commitments[name])
            for name, slots in self.prepared.slots.items()
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

    @property
    def secagg(self) -> Literal["run", "elide", "none"]:
        """Whether sums are secure, in the clear though the plan says secure, or in the clear by plan."""
        return self.prepared.study.settings.speed.secagg if self.plan.secagg is not None else "none"

    # --- rounds ---

    def _train(self, record: Record, start: Progress) -> Float32[np.ndarray, " params"]:
        coordinator, sites = self._parties(record, start)
        while not coordinator.is_finished:
            self.permission.check_going_on(self.name, coordinator.round_number - 1)
            closed = self._attempt(coordinator, sites, record)
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
            measured = self.prepared.learner.evaluate(progress.parameters, self.prepared.test)
            metrics = {name: value for name, value in measured.items() if math.isfinite(value)}
            record.append(Evaluated(run=self.name, round_number=done, metrics=metrics))

    def _attempt(
        self, coordinator: Coordinator, sites: dict[str, Participant], record: Record
    ) -> RoundClosed | RoundFailed:
        """One attempt at one round: carry messages to and fro until there is nothing more to send."""
        asked = coordinator.open(list(sites))
        if self.secagg != "run":
            self._charge(record, coordinator.round_number, coordinator.attempt)  # an empty cohort is charged too
        self._carry(asked, coordinator, sites)
        while asked := coordinator.advance():
            self._carry(asked, coordinator, sites)
        return coordinator.close()

    def _carry(self, asked: dict[str, bytes], coordinator: Coordinator, sites: dict[str, Participant]) -> None:
        for name, message in asked.items():
            reply = sites[name].receive(message, self.prepared.learner)
            if reply is not None:
                coordinator.receive(reply)

    def _parties(self, record: Record, start: Progress) -> tuple[Coordinator, dict[str, Participant]]:
        settings = self.prepared.study.settings
        federation = None
        if self.plan.secagg is not None and self.secagg == "run":
            number = self.ledger.accounts().number(self.name)
            federation = Federation(self.plan, self.plan.secagg, number=number, log=self.log, origin=self.key.name)
        make_sum = federation.make_sum if federation else (elided(self.plan) if self.secagg == "elide" else None)
        coordinator = Coordinator(
            self.name,
            settings=settings,
            plan=self.plan,
            start=start,
            randomness=self.randomness,
            make_sum=make_sum,
        )
        charge = partial(self._charge, record)
        sites = {
            name: Participant(
                name,
                self.name,
                settings=settings,
                plan=self.plan,
                slots=slots,
                randomness=self.randomness,
                charge=charge,
                masking=federation.masking(name, charge) if federation else None,
                is_elided=self.secagg == "elide",
                last_mark=(start.round_number, start.attempt),
            )
            for name, slots in self.prepared.slots.items()
        }
        return coordinator, sites

    def _charge(self, record: Record, round_number: int, attempt: int) -> None:
        """Charge all datasets for an attempt, durably, the first time somebody asks."""
        if (round_number, attempt) != record.charged:  # everybody asks, the first one charges for all
            self.ledger.charge(self.name, round_number, attempt)
            record.copy(BudgetCharged(run=self.name, round_number=round_number, attempt=attempt))

    # --- the end ---

    def _finish(self, record: Record, parameters: Float32[np.ndarray, " params"]) -> None:
        model = save(self.prepared.learner.export(parameters))
        self.folder.write("model.safetensors", model)
        model_hash = hashlib.sha256(model).hexdigest()
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
