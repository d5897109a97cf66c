"""Run a study with everybody in this process.

check -> plan -> reserve -> (round: ask, train, clip, encode, add up, noise, step) x T -> settle -> claim
"""

import hashlib
import importlib.metadata
import math
import platform
import secrets
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from jaxtyping import Float32
from safetensors.numpy import save

from hubbub.accounting.ledger import Ledger
from hubbub.coordinator import Coordinator
from hubbub.engine.federation import Federation, elided
from hubbub.engine.home import home_folder, open_log, salts
from hubbub.engine.prepare import Prepared, prepare
from hubbub.errors import BudgetError, InputError
from hubbub.eventlog import EventLog
from hubbub.events import (
    NOT_PRIVATE,
    AnyEvent,
    BudgetCharged,
    BudgetReserved,
    Evaluated,
    Event,
    EventFile,
    ParticipantJoined,
    RoundClosed,
    RoundFailed,
    RunFinished,
    RunStarted,
)
from hubbub.observe import write_report
from hubbub.participant import Participant, commit
from hubbub.planning import Plan, make_plan
from hubbub.randomness import OperatingSystemRandomness, Randomness, SeededRandomness
from hubbub.release import ReleaseClaim, make_claim
from hubbub.study import Study

EVALUATIONS = 100
"""Most points at which a run is measured on the test records."""

Watch = Callable[[Event, Plan], None]


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
        is_success: Whether the study's success criteria are met; None if it has none.
        wall_seconds: Duration.
        log_size: Entries of the transparency log, None without one.
        log_root: Its root hash, None without one.
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
    is_success: bool | None
    wall_seconds: float
    log_size: int | None
    log_root: str | None
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
        home: Where ledger and salts live. Default: HUBBUB_HOME, or `.hubbub` beside the study.
        watch: Called with each event and the plan, as it happens.
        randomness: For tests and simulations: another source than the operating system. The claim then
            says "not certifiable".

    Raises:
        StudyError, CodeError, PlanError: The study is wrong; nothing trained, nothing spent.
        BudgetError: A dataset's budget does not admit the plan; nothing trained, nothing spent.
        RoundError: The plan's retries are used up.
    """
    started = time.monotonic()
    prepared = prepare(study)
    plan = make_plan(prepared.study)
    name = f"{plan.study}-{secrets.token_hex(4)}"
    folder = Path(out) if out is not None else (study.directory or Path()) / "runs" / name
    home_path = Path(home) if home is not None else home_folder(study.directory)
    log = open_log(home_path)
    try:
        session = _Session(prepared, plan, name, log, randomness=_source(study, randomness))
        with _one_torch_thread():
            return session.run(folder, salts(home_path, prepared.slots), watch, started)
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


def _source(study: Study, given: Randomness | None) -> Randomness:
    if given is not None:
        return given
    if study.settings.privacy.noise_source == "float-simulation":
        return SeededRandomness(study.settings.study.seed, "float-simulation")
    return OperatingSystemRandomness()


@dataclass
class _Session:
    """One run: the parties of a plan and the log that records them."""

    prepared: Prepared
    plan: Plan
    name: str
    log: EventLog
    randomness: Randomness

    @property
    def ledger(self) -> Ledger:
        """The budgets in the log."""
        return Ledger(self.log)

    def run(self, folder: Path, salt: dict[str, bytes], watch: Watch | None, started: float) -> RunResult:
        _make(folder)
        try:
            reserved = self.ledger.reserve(self._reservation(), sandbox_delta=self.plan.delta)
        except BudgetError:
            folder.rmdir()
            raise
        (folder / "plan.json").write_bytes(msgspec.json.format(msgspec.json.encode(self.plan), indent=1) + b"\n")
        record = _Record(folder, self.plan, self.log, watch)
        record.copy(*reserved)
        try:
            record.append(*self._opening(salt))
            parameters = self._train(record)
            model = save(self.prepared.learner.export(parameters))
            (folder / "model.safetensors").write_bytes(model)
            model_hash = hashlib.sha256(model).hexdigest()
            record.append(RunFinished(run=self.name, rounds=self.plan.rounds, model_hash=model_hash))
        finally:
            record.copy(self.ledger.settle(self.name))
            record.close()
        return self._finish(folder, record.events, started)

    def _opening(self, salt: dict[str, bytes]) -> list[AnyEvent]:
        start = RunStarted(
            run=self.name,
            study=self.plan.study,
            plan_hash=self.plan.hash,
            code_hash=self.plan.code_hash,
            noise_source=self.noise_source,
            secagg=self.secagg,
            versions=_versions(),
        )
        joined: list[AnyEvent] = [
            ParticipantJoined(
                run=self.name, participant=name, slots=len(slots), data_commitment=commit(slots, salt[name])
            )
            for name, slots in self.prepared.slots.items()
        ]
        return [start, *joined]

    def _reservation(self) -> BudgetReserved:
        """What this run costs: noise that somebody can repeat protects nobody, whatever its size."""
        reserved = self.plan.reservation(self.name)
        return reserved if self.noise_source == "os" else msgspec.structs.replace(reserved, dp_event=NOT_PRIVATE)

    @property
    def noise_source(self) -> str:
        """Where the noise came from: only "os" can be certified."""
        mechanism = self.plan.mechanism
        if not mechanism.sigma:
            return "none"
        return self.randomness.name if mechanism.noise_source == "os" else mechanism.noise_source

    def _train(self, record: "_Record") -> Float32[np.ndarray, " params"]:
        learner = self.prepared.learner
        coordinator, sites = self._parties(record)
        every = max(1, self.plan.rounds // EVALUATIONS)
        while not coordinator.is_finished:
            closed = self._attempt(coordinator, sites, record)
            record.append(closed)
            is_last = coordinator.is_finished
            if isinstance(closed, RoundClosed) and (is_last or closed.round_number % every == 0):
                measured = learner.evaluate(coordinator.parameters, self.prepared.test)
                metrics = {name: value for name, value in measured.items() if math.isfinite(value)}
                record.append(Evaluated(run=self.name, round_number=closed.round_number, metrics=metrics))
        return coordinator.parameters

    def _attempt(
        self, coordinator: Coordinator, sites: dict[str, Participant], record: "_Record"
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

    def _parties(self, record: "_Record") -> tuple[Coordinator, dict[str, Participant]]:
        settings = self.prepared.study.settings
        federation = None
        if self.plan.secagg is not None and self.secagg == "run":
            number = self.ledger.accounts().number(self.name)
            federation = Federation(self.plan, self.plan.secagg, number=number, head=record.head)
        make_sum = federation.make_sum if federation else (elided(self.plan) if self.secagg == "elide" else None)
        coordinator = Coordinator(
            self.name,
            settings=settings,
            plan=self.plan,
            parameters=self.prepared.learner.initial(),
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
                client=federation.client(name, charge) if federation else None,
                own_session=federation.session if federation else None,
                is_elided=self.secagg == "elide",
            )
            for name, slots in self.prepared.slots.items()
        }
        return coordinator, sites

    @property
    def secagg(self) -> Literal["run", "elide", "none"]:
        """Whether sums are secure, in the clear though the plan says secure, or in the clear by plan."""
        return self.prepared.study.settings.speed.secagg if self.plan.secagg is not None else "none"

    def _charge(self, record: "_Record", round_number: int, attempt: int) -> None:
        """Charge all datasets for an attempt, durably, the first time somebody asks."""
        if self.ledger.charge(self.name, round_number, attempt):
            record.copy(BudgetCharged(run=self.name, round_number=round_number, attempt=attempt))

    def _finish(self, folder: Path, events: list[Event], started: float) -> RunResult:
        claim = make_claim(
            self.plan,
            self.prepared.study.settings,
            events,
            accounts=self.ledger.accounts(),
            is_test_public=self.prepared.is_test_public,
        )
        (folder / "claim.json").write_bytes(msgspec.json.format(msgspec.json.encode(claim), indent=1) + b"\n")
        write_report(folder / "report.html", self.plan, claim, events)
        return self._result(claim, folder, started)

    def _result(self, claim: ReleaseClaim, folder: Path, started: float) -> RunResult:
        return RunResult(
            run=self.name,
            rounds=claim.rounds,
            participants=len(self.plan.slots),
            epsilon_spent=claim.epsilon_spent,
            epsilon_planned=claim.epsilon_planned,
            epsilon_budget=self.prepared.study.settings.privacy.epsilon,
            delta=claim.delta,
            metrics=claim.metrics,
            is_success=claim.is_success,
            wall_seconds=round(time.monotonic() - started, 3),
            log_size=None,
            log_root=None,
            out=str(folder),
        )


class _Record:
    """The events of one run, into the log; copied to events.jsonl and to whoever watches; metrics.jsonl from them."""

    def __init__(self, folder: Path, plan: Plan, log: EventLog, watch: Watch | None) -> None:
        self.events: list[Event] = []
        self._plan = plan
        self._log = log
        self._watch = watch
        self._file = EventFile(folder / "events.jsonl")
        self._metrics = (folder / "metrics.jsonl").open("xb")
        self._attempts = 0

    def head(self) -> tuple[int, bytes]:
        """Size and root of the record as it is."""
        return self._file.size, self._file.root

    def append(self, *events: AnyEvent) -> None:
        """Record events that nothing was decided on."""
        self._log.note(*events)
        self.copy(*events)

    def copy(self, *events: Event) -> None:
        """Copy events that are in the log."""
        for event in events:
            self._file.append(event)
            self.events.append(event)
            self._attempts += isinstance(event, BudgetCharged)
            if isinstance(event, Evaluated):
                line = {
                    "round": event.round_number,
                    "epsilon": self._plan.epsilon_after(self._attempts),
                    **event.metrics,
                }
                self._metrics.write(msgspec.json.encode(line) + b"\n")
            if self._watch is not None:
                self._watch(event, self._plan)

    def close(self) -> None:
        self._file.close()
        self._metrics.close()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"{folder}, must be a new folder that can be made, {error.strerror or error}; "
            "nothing trained, nothing spent",
            hint="name another one with --out",
        ) from None


def _versions() -> dict[str, str]:
    names = ("hubbub", "numpy", "dp-accounting", "cryptography", "torch")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
