"""Run a study with everybody in this process.

check -> plan -> reserve -> (round: ask, train, clip, encode, add up, noise, step) x T -> settle -> claim

A run that was interrupted goes on from its last closed round: what was charged stays charged, and whatever
is asked again is a new attempt with fresh samples and fresh noise.
"""

import os
import secrets
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from hubbub.accounting.ledger import Ledger
from hubbub.coordinator import Coordinator, Progress
from hubbub.coordinator.sums import MakeSum
from hubbub.engine.federation import Federation, elided
from hubbub.engine.folder import FORMAT, RunFacts, RunFolder
from hubbub.engine.home import home_folder, open_log, open_log_key, open_log_of, salts
from hubbub.engine.prepare import Prepared, prepare
from hubbub.engine.record import Record, Watch, events_of
from hubbub.engine.running import Hosts, Running, RunResult, Secagg
from hubbub.engine.workers import Alone, Pool, Workers
from hubbub.errors import InputError, StoppedError, typed
from hubbub.eventlog import EventLog
from hubbub.events import BudgetSettled, RoundClosed, RoundFailed
from hubbub.local.threads import one_thread
from hubbub.messages import decode_message
from hubbub.participant import Participant, commit
from hubbub.participant.records import Work
from hubbub.participant.site import Charge
from hubbub.planning import Plan, make_plan
from hubbub.randomness import OperatingSystemRandomness, Randomness, SeededRandomness
from hubbub.study import Study, load_study, made_up
from hubbub.tlog import Signer


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
        WaitingError: A review has to be passed, or the study approved again; `resume` goes on.
        StoppedError: Ctrl-C was pressed; `resume` goes on, where anything was reserved.
    """
    started = time.monotonic()
    try:
        prepared = prepare(study)
        plan = make_plan(prepared.study)
    except KeyboardInterrupt:
        raise StoppedError(
            f"{study.settings.study.name}, was stopped while code and data were checked; "
            "nothing trained, nothing spent",
            hint=typed("hubbub", "run", study.directory or "STUDY"),
        ) from None
    name = f"{plan.study}-{secrets.token_hex(4)}"
    folder = RunFolder(Path(out) if out is not None else (study.directory or Path()) / "runs" / name)
    home_path = Path(home) if home is not None else home_folder(study.directory)
    facts = RunFacts(
        format=FORMAT,
        run=name,
        study=None if study.directory is None else str(study.directory.resolve()),
        home=str(home_path.resolve()),
    )
    with _opened(open_log(home_path)) as (log, key):
        commitments = _commitments(prepared, home_path)
        source = _source(study, randomness)
        with closing(SitesHere(prepared)) as sites:
            running = Running(prepared, plan, facts, folder, log, key, source, commitments, sites)
            running.reserve()
            with folder.held():
                return running.run(watch, started)


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
        with _opened(open_log_of(facts.run, Path(facts.home))) as (log, key):
            source = _source(prepared.study, randomness, again=len(events_of(log, facts.run)))
            commitments = _commitments(prepared, Path(facts.home))
            with closing(SitesHere(prepared)) as sites:
                running = Running(prepared, plan, facts, run_folder, log, key, source, commitments, sites)
                return running.run(watch, started)


def stop(folder: str | Path) -> BudgetSettled:
    """Give up a run that was interrupted: what was charged stays charged, the rest of its budget returns.

    Raises:
        InputError: The folder is no run directory.
        RefusedError: The run has ended, or is being run.
    """
    run_folder = RunFolder(Path(folder))
    facts = run_folder.facts()
    with run_folder.held(), _opened(open_log_of(facts.run, Path(facts.home))) as (log, _):
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
def _opened(log: EventLog) -> Generator[tuple[EventLog, Signer]]:
    try:
        with one_thread():
            yield log, open_log_key(log.path.parent)
    finally:
        log.close()


def _source(study: Study, given: Randomness | None, again: int = 0) -> Randomness:
    """Where noise and samples come from; a simulation that goes on `again` must not repeat its noise."""
    if given is not None:
        return given
    if study.settings.privacy.noise_source == "float-simulation":
        return SeededRandomness(study.settings.study.seed + (again << 32), "float-simulation")
    return OperatingSystemRandomness()


class SitesHere:
    """All participants in this process, and as many worker processes as the study asks for.

    Args:
        prepared: The study, with everybody's slots.
    """

    hosts: Hosts = "one"

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._sites: dict[str, Participant] = {}
        self._workers: Workers | None = None
        self._charge_first: Charge | None = None

    def secagg(self, plan: Plan) -> Secagg:
        """As the study says, where its plan asks for secure sums."""
        return self._prepared.study.settings.speed.secagg if plan.secagg is not None else "none"

    def begin(self, running: Running, start: Progress, record: Record) -> MakeSum | None:
        """Make every participant, keys of this run alone, which one process holds, and the workers."""
        charge = partial(running.charge, record)
        plan, secagg = running.plan, self.secagg(running.plan)
        federation = None
        if plan.secagg is not None and secagg == "run":
            number = running.ledger.accounts().number(running.name)
            federation = Federation(plan, plan.secagg, number=number, log=running.log, origin=running.key.name)
        self._sites = {
            name: Participant(
                name,
                running.name,
                settings=self._prepared.study.settings,
                plan=plan,
                slots=slots,
                randomness=running.randomness,
                charge=charge,
                masking=federation.masking(name, charge) if federation else None,
                is_elided=secagg == "elide",
                last_mark=(start.round_number, start.attempt),
            )
            for name, slots in self._prepared.slots.items()
        }
        self._workers = self._make_workers(running)
        self._charge_first = None if federation else charge
        return federation.make_sum if federation else (elided(plan) if secagg == "elide" else None)

    def _make_workers(self, running: Running) -> Workers:
        settings = self._prepared.study.settings
        records = {name: site.records for name, site in self._sites.items()}
        length, test = running.plan.mechanism.length, self._prepared.test
        alone = Alone(records, self._prepared.learner, settings, length=length, test=test)
        cohort = running.plan.mechanism.participants.size(len(records))
        count = min(settings.speed.workers, cohort)
        if running.noise_source == "os" and settings.privacy.unit == "client":
            rows, example = sum(running.plan.slots.values()) // len(records), made_up(settings.data)
            learner = self._prepared.learner
            learner.rehearse(example, settings.training, participants=-(-cohort // count), rows=rows)
        if count == 1 or not running.randomness.is_apart_after_fork or not hasattr(os, "fork"):
            return alone
        return Pool(alone, count, in_child=running.folder.let_go)

    def close(self) -> None:
        """End the workers."""
        if self._workers is not None:
            self._workers.close()

    def attempt(self, coordinator: Coordinator) -> RoundClosed | RoundFailed:
        """One attempt at one round."""
        asked = coordinator.open(list(self._prepared.slots))
        if self._charge_first is not None:
            self._charge_first(coordinator.round_number, coordinator.attempt)  # an empty cohort is charged too
        self._carry(asked, coordinator)
        while asked := coordinator.advance():
            self._carry(asked, coordinator)
        return coordinator.close()

    def evaluate(self, prepared: Prepared, parameters: Float32[np.ndarray, " params"]) -> dict[str, float]:
        """A model's metrics on the test records, by the workers once there are some."""
        if self._workers is None:
            return prepared.learner.evaluate(parameters, prepared.test)
        return self._workers.evaluate(parameters)

    def _carry(self, asked: dict[str, bytes], coordinator: Coordinator) -> None:
        """Hand everybody what it is asked; then let those who are to train do so, side by side."""
        training: dict[Work, list[str]] = {}
        messages = {data: decode_message(data) for data in set(asked.values())}
        for name, data in asked.items():
            reply = self._sites[name].begin(messages[data])
            if isinstance(reply, Work):
                training.setdefault(reply, []).append(name)
            elif reply is not None:
                coordinator.receive(reply)
        for work, names in training.items():
            self._train(names, work, coordinator)

    def _train(self, names: list[str], work: Work, coordinator: Coordinator) -> None:
        assert self._workers is not None  # noqa: S101, the run has begun
        if coordinator.is_clear:
            coordinator.add(names, self._workers.total(names, work, meanwhile=coordinator.draw_ahead))
            return
        for name, vector in self._workers.vectors(names, work):
            coordinator.receive(self._sites[name].finish(vector))
