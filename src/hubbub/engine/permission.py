"""What a federation and each site say of a run: whether it may begin, on whose budgets, whether it must wait or end.

In a sandbox no federation is asked: datasets have the participants' names, and budgets grant themselves. A site's own
policy, `sites/NAME.toml` in the home, is asked everywhere, after the federation: it can only forbid.
"""

import datetime as dt
import time
from collections.abc import Mapping
from pathlib import Path

from hubbub.accounting.accounts import FIXED, Accounts, owners_grant
from hubbub.errors import RefusedError, WaitingError
from hubbub.eventlog import EventLog
from hubbub.events import BudgetGranted
from hubbub.governance import AttestationPolicy, Federation, read_attestation_policy, read_policy, terms_of
from hubbub.participant.admission import facts_of
from hubbub.planning import Plan
from hubbub.study.config import Settings


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


class Permission:
    """One run's questions to the federation whose log it writes to.

    Args:
        log: The log.
        plan: What is about to run.
        settings: The study.
        commitments: To each participant's records.
    """

    def __init__(self, log: EventLog, plan: Plan, settings: Settings, commitments: Mapping[str, str]) -> None:
        self._log = log
        self._plan = plan
        self._settings = settings
        self._commitments = commitments

    @property
    def federation(self) -> Federation:
        """The federation as it is now."""
        return self._log.fold(Federation)

    @property
    def is_sandbox(self) -> bool:
        """Whether nobody has to be asked."""
        return self.federation.is_sandbox

    def accounts(self) -> list[str] | None:
        """Names of the budgets that pay for this run; None in a sandbox.

        Raises:
            RefusedError: A participant has no registered dataset.
        """
        federation = self.federation
        if federation.is_sandbox:
            return None
        accounts = [federation.datasets[key].account for key in self._datasets()]
        if len(set(accounts)) < len(accounts):
            raise RefusedError(
                "participants, must each have a budget of their own, found two with versions of one dataset, where a "
                "record would count twice; nothing trained, nothing spent",
                hint="let one of them take part",
            )
        return accounts

    def grant(self) -> list[BudgetGranted]:
        """Refuse a run that may not begin; else what owners granted and the ledger does not know yet.

        Raises:
            RefusedError: Not approved, or not on these bytes, or against a site's own policy; nothing trained, nothing
                spent.
            InputError: A site's policy cannot be read.
        """
        federation = self.federation
        if federation.is_sandbox:
            self._ask_sites()
            return []
        self._ask_federation()
        self._ask_sites()
        return [grant for key in dict.fromkeys(self.accounts() or ()) for grant in self._granted(key)]

    def check_going_on(self, run: str, after_round: int) -> None:
        """Refuse the next round of a run that somebody ended, that waits for a review, or whose approval holds no more.

        Raises:
            WaitingError: A review has to be passed first, or the study approved again; the run stays open.
            RefusedError: The run was ended.
        """
        federation = self.federation
        if federation.is_stopped(run):
            raise RefusedError(
                f"run {run}, must not be stopped by anybody who may, found that it was, after round {after_round}; "
                "nothing more asked, what was charged stays charged",
                hint="hubbub approvals",
            )
        for review in self._settings.governance.reviews:
            if review <= after_round and not federation.review_passed(run, review):
                raise WaitingError(
                    f"run {run}, waits for a review after round {review}; nothing more asked, it stays reserved",
                    hint=f"hubbub propose review {run} {review} --key FILE, then hubbub resume",
                )
        try:
            self._ask_federation()
        except RefusedError as error:
            raise WaitingError(
                f"run {run}, must be allowed before each round, found after round {after_round}: "
                f"{error.message.partition(';')[0]}; nothing more asked, it stays reserved",
                hint=f"{error.hint}, then hubbub resume",
            ) from None

    def _ask_federation(self) -> None:
        """Refuse what is not approved now, on exactly these bytes and records."""
        if not self.is_sandbox:
            self.federation.may_run(
                plan_hash=self._plan.hash,
                study_hash=self._plan.study_hash,
                code_hash=self._plan.code_hash,
                datasets={key: self._commitments[name] for key, name in self._datasets().items()},
                purpose=self._settings.study.purpose,
                terms=terms_of(self._settings, minimum=self._plan.minimum),
                now=now(),
            )

    def _ask_sites(self) -> None:
        """Refuse what one of the sites does not want, though everybody else agreed."""
        facts = facts_of(self.federation, self._plan, self._settings)
        today = dt.datetime.fromtimestamp(now(), dt.UTC).date()
        for name, path in self._site_files().items():
            if name in self._commitments:
                try:
                    read_policy(path).check(facts, today=today)
                    _check_unattested(read_attestation_policy(path))
                except RefusedError as error:
                    raise RefusedError(f"sites/{path.name}: {error.message}", hint=error.hint) from None

    def _site_files(self) -> dict[str, Path]:
        """Files of sites by name; each is read, in a federation as a participant's, or a limit would limit nobody."""
        folder = self._log.path.parent / "sites"
        is_there = folder.exists() or folder.is_symlink()  # what is there and cannot be listed permits nothing
        found = folder.iterdir() if is_there else ()
        files = {path.stem: path for path in sorted(found) if not path.name.startswith(".")}
        known = files if self.is_sandbox else {card.name for card in self.federation.roster().members}
        for name, path in files.items():
            if name not in known or path.suffix != ".toml":
                raise RefusedError(
                    f"sites/{path.name}, must have the name of a participant in the roster and end in .toml, "
                    f"found {path.name!r}; nothing trained, nothing spent",
                    hint="hubbub federation show",
                )
        return files

    def _datasets(self) -> dict[str, str]:
        """The newest dataset of each participant, with its name."""
        held = self.federation.held()
        for name in self._commitments:
            if name not in held:
                raise RefusedError(
                    f"{name}, must hold a registered dataset, found none; nothing trained, nothing spent",
                    hint=f"hubbub dataset register {name} --help",
                )
        return {held[name]: name for name in self._commitments}

    def _granted(self, account: str) -> list[BudgetGranted]:
        before = self._log.fold(Accounts).grants.get(account)
        granted = owners_grant(self.federation, account, before)
        if before is not None and any(getattr(before, name) != getattr(granted, name) for name in FIXED):
            raise RefusedError(
                f"{account[:12]}, must have the budget that its owner registered, found a {before.kind} at "
                f"delta {before.delta:g}; nothing trained, nothing spent",
                hint="register the dataset again, under an id of its own",
            )
        return [] if before == granted else [granted]


def _check_unattested(policy: AttestationPolicy) -> None:
    if policy.required:
        raise RefusedError(
            "this site's policy: attestation, must be shown, found one process for all, which shows none; "
            "nothing trained, nothing spent",
            hint="hubbub join: on hosts of their own a coordinator can attest",
        )
