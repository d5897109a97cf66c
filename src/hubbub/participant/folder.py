"""A participant's own directory: nothing in it comes from the coordinator but what its owner put there.

    site.toml    where the rest is, and this site's own policy
    NAME.key     its keys; NAME.membership: what it believes of its coordinator
    studies/     studies that its owner has read; the only code that may run here, found by hash
    salt         of its data commitments
    memory.db    its copy of the log, its mark, its charges; witness.db: what it has cosigned
    plans/       plans that it made itself
    recover      there while its owner wants the recovery; recovered: what that charged
    refusals     what it refused and why, one line of JSON each; evidence/: signed pieces that convict the signer

*Trust:* whoever can write here is this participant.
"""

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from hubbub.errors import HubbubError, InputError, typed
from hubbub.governance import Keys, load_keys
from hubbub.governance.attestation import AttestationPolicy, read_attestation_policy
from hubbub.governance.enrolment import Membership, read_membership
from hubbub.governance.policy import SitePolicy, read_policy, read_site_table
from hubbub.participant.commitment import SALT_BYTES
from hubbub.participant.evidence import EVIDENCE, Broken, Unjoined, keep
from hubbub.participant.log_view import Mark
from hubbub.planning import Plan
from hubbub.study import Study
from hubbub.study.store import find_study
from hubbub.tlog.database import create_file
from hubbub.tlog.tiles import replace_file

SITE, RECOVER, PLANS = "site.toml", "recover", "plans"
DATA = "HUBBUB_DATA"
"""Variable by which a study's `data()` finds the records of the site that it runs at."""


class SiteSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[site]` of site.toml. Paths are relative to its folder.

    Args:
        key: Key file of the participant.
        membership: What the operator answered to its request.
        data: Folder of its records, which study code finds in HUBBUB_DATA.
        studies: Folder of the studies that may run here.
        organisations: Fewest organisations in a roster that it works with.
        keys_per_organisation: Most keys of one of them.
        recovery: What it does at a start when the log holds attempts that it does not remember, since it was away, or
            since its disk was put back: "charge" them and go on, or refuse until its owner says `hubbub recover`.
    """

    key: str
    membership: str
    data: str = "."
    studies: str = "studies"
    organisations: Annotated[int, Meta(ge=1)] = 2
    keys_per_organisation: Annotated[int, Meta(ge=1)] = 1
    recovery: Literal["charge", "ask"] = "charge"


class SiteFolder:
    """One participant's directory.

    Args:
        path: The directory.

    Raises:
        InputError: There is no site.toml, or it holds a key or value that is not known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = read_site_table(path / SITE, "site", SiteSettings)

    def check(self) -> None:
        """Refuse at the start what a run would find wrong later.

        Raises:
            InputError: A table of site.toml, or the salt, is damaged, or there is no folder of records.
        """
        for read in (self.policy, self.attestation, self.salt):
            read()
        data = self.path / self.settings.data
        if not data.is_dir():
            raise InputError(
                f"{data}, must be the folder of this site's records, found none; nothing started",
                hint=f"[site] data in {self.path / SITE}",
            )

    def keys(self) -> Keys:
        """Its keys.

        Raises:
            InputError, RefusedError: As `load_keys`.
        """
        return load_keys(self.path / self.settings.key)

    def membership(self) -> Membership:
        """What it believes of its coordinator.

        Raises:
            InputError: As `read_membership`.
        """
        return read_membership(self.path / self.settings.membership)

    def policy(self) -> SitePolicy:
        """Its own limits, as they are now: its owner may change them while it runs."""
        return read_policy(self.path / SITE)

    def attestation(self) -> AttestationPolicy:
        """What its coordinator must show."""
        return read_attestation_policy(self.path / SITE)

    def salt(self) -> bytes:
        """Of its data commitments, made at first use.

        Raises:
            InputError: The file is damaged.
        """
        path = self.path / "salt"
        create_file(path, secrets.token_bytes(SALT_BYTES))
        salt = path.read_bytes()
        if len(salt) != SALT_BYTES:
            raise InputError(
                f"{path}, must hold {SALT_BYTES} bytes, found {len(salt)}; nothing sent", hint="restore it from a copy"
            )
        return salt

    def study(self, study_hash: str, code_hash: str) -> Study:
        """The study of these hashes, from its own store.

        Raises:
            CodeError: Its owner has put no such study there.
        """
        return find_study(self.path / self.settings.studies, study_hash, code_hash)

    def plan(self, plan_hash: str, study: Study) -> Plan | None:
        """A plan that this site made before from the same study; None if it made none, or keeps it no more."""
        try:
            plan = msgspec.json.decode((self.path / PLANS / f"{plan_hash}.json").read_bytes(), type=Plan)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        lock = study.current_lock
        made_from = (plan.study_hash, plan.code_hash, plan.slots, plan.mechanism.dimension)
        is_same = lock is not None and made_from == (
            study.settings.approved_hash(),
            lock.code_hash,
            lock.slots,
            lock.parameters,
        )
        return plan if is_same and plan.hash == plan_hash else None

    def keep_plan(self, plan: Plan) -> None:
        """Keep a plan that this site made, since making it takes seconds."""
        path = self.path / PLANS / f"{plan.hash}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            replace_file(path, msgspec.json.encode(plan))

    @property
    def may_recover(self) -> bool:
        """Whether it may charge what it does not remember: always, or once because its owner asked."""
        return self.settings.recovery == "charge" or (self.path / RECOVER).exists()

    def ask_recovery(self) -> None:
        """Have the next start take the maximum of memory and log."""
        (self.path / RECOVER).touch()

    def note_recovery(self, lost: Sequence[Mark]) -> None:
        """Write down that the recovery was made, and what it charged."""
        with (self.path / "recovered").open("a") as file:
            file.write(json.dumps(lost) + "\n")
        (self.path / RECOVER).unlink(missing_ok=True)

    def note_refusal(self, error: HubbubError, code: str, now: int, evidence: Sequence[Unjoined | Broken] = ()) -> str:
        """Keep evidence and write down what was refused, for the owner; the hint, which names the place of it."""
        files = [file for found in evidence for file in keep(self.path / EVIDENCE, found)]
        names = [str(file.relative_to(self.path)) for file in files]
        kept = f"{typed(self.path / EVIDENCE)} holds it: show it to the other members, and report the coordinator"
        hint = kept if names else error.hint
        line: dict[str, object] = {"at": now, "code": code, "error": error.message, "hint": hint}
        line |= {"evidence": names} if names else {}
        with (self.path / "refusals").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return hint

    def show_data(self) -> None:
        """Let study code that is loaded from now on find this site's records."""
        os.environ[DATA] = str((self.path / self.settings.data).resolve())
