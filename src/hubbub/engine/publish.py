"""Release a finished run: gate, log entry, quorum, signed bundle.

    finished -> noise is real -> approved -> logged -> cosigned by a quorum -> bundle

Every step may be refused and tried again: what is logged once is not logged twice.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from hubbub.accounting.ledger import Ledger
from hubbub.engine.folder import RunFacts, RunFolder
from hubbub.engine.heads import Heads
from hubbub.engine.home import cosignatures, open_log_key, open_log_of, own_secret
from hubbub.engine.permission import now
from hubbub.errors import AT, HubbubError, InputError, RefusedError, typed
from hubbub.eventlog import EventLog
from hubbub.events import AnyEvent, ModelReleased
from hubbub.governance import Federation, witness_policy
from hubbub.planning import Plan
from hubbub.release import ReleaseClaim, claim_from_log
from hubbub.release.bundle import COPIED, MODEL, StudyFacts, write_bundle
from hubbub.release.model_signing import fingerprint, new_key, read_key
from hubbub.tlog import Note, Verifier, verify_checkpoint

Cosign = Callable[[Note, Mapping[str, Verifier]], Note]
"""Adds the cosignatures that can be had now, of these witnesses."""


def release_run(folder: str | Path, *, out: str | Path | None = None, cosign: Cosign | None = None) -> Path:
    """Release a run's model under its claim, in a bundle that anybody can verify offline.

    Args:
        folder: The run directory.
        out: The bundle, not there yet. Default: `bundle` in the run directory.
        cosign: Asks witnesses; default: nobody, whose cosignatures are there by now count.

    Returns:
        The bundle.

    Raises:
        InputError: The folder is no run directory, or not as the run left it.
        RefusedError: The run has not ended, protects nobody, or somebody has still to approve or to cosign;
            nothing released.
    """
    run_folder = RunFolder(Path(folder))
    facts, bundle = run_folder.facts(), Path(out) if out is not None else run_folder.path / "bundle"
    with run_folder.held():
        home = Path(facts.home)
        log = open_log_of(facts.run, home)
        try:
            files = _files(run_folder, log, facts)
            claim = _claim(log, facts.run, files)
            _check_worth_releasing(claim)
            key = _release_key(home)
            _record(log, files, claim, fingerprint(key.public_key()))
            heads = Heads(log.store, open_log_key(home), cosignatures(home))
            policy = witness_policy(log.fold(Federation), heads.key.verifier)
            head = heads.head()
            if cosign is not None:
                head = cosign(head, {party.name: party.key for party in policy.witnesses})
                heads.keep(head)
            try:
                verify_checkpoint(head, policy, now=now() if policy.witnesses else None)
            except HubbubError as error:
                raise RefusedError(
                    f"run {facts.run}, must be released under a quorum of witnesses, {error.message}; not released",
                    hint=f"hubbub status {AT} shows who is connected; try again when more are"
                    if cosign
                    else f"hubbub log witness DIR --key FILE, by more of them; then hubbub release {typed(folder)}",
                ) from None
            write_bundle(bundle, files, store=log.store, checkpoint=head, policy=policy, key=key)
        finally:
            log.close()
    return bundle


def _files(folder: RunFolder, log: EventLog, facts: RunFacts) -> dict[str, bytes]:
    try:
        files = {name: (folder.path / name).read_bytes() for name in COPIED}
        return files | {MODEL: (folder.path / "model.safetensors").read_bytes()}
    except OSError as error:
        account = Ledger(log).accounts().runs.get(facts.run)
        is_over = account is None or account.is_settled
        raise RefusedError(
            f"{folder.path}, must be the directory of a run that has ended, {error.strerror}: "
            f"{Path(str(error.filename)).name}; nothing released",
            hint=f"{typed('hubbub', 'run', facts.study or 'STUDY')} starts a new one: this one cannot go on"
            if is_over
            else typed("hubbub", "resume", folder.path),
        ) from None


def _claim(log: EventLog, run: str, files: dict[str, bytes]) -> ReleaseClaim:
    """The claim that follows from the log; the one in the folder must be it."""
    try:
        plan = msgspec.json.decode(files["plan.json"], type=Plan)
        study = msgspec.json.decode(files["study.json"], type=StudyFacts)
        claim = msgspec.json.decode(files["claim.json"], type=ReleaseClaim)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"run {run}, must have its files as it left them, {error}; nothing released", hint="restore them"
        ) from None
    again = claim_from_log(log.events(), run, plan, study.settings)
    if claim != again or claim.hashes["model"] != hashlib.sha256(files[MODEL]).hexdigest():
        raise RefusedError(
            f"run {run}, must have the claim and the model that follow from its log, found others; nothing released",
            hint="restore claim.json and model.safetensors, or hubbub resume writes the claim again",
        )
    return claim


def _check_worth_releasing(claim: ReleaseClaim) -> None:
    if claim.epsilon_spent is None or not claim.certifiable:
        found = (
            "none"
            if claim.epsilon_spent is None
            else claim.secagg
            if claim.noise_source == "os"
            else claim.noise_source
        )
        raise RefusedError(
            f"run {claim.run}, must have added noise that nobody can repeat, under its plan's sums, found {found}; "
            "nothing released",
            hint='noise = "distributed", noise_source = "os", secagg = "run"',
        )


def _release_key(home: Path) -> EllipticCurvePrivateKey:
    path = home / "release.key"
    own_secret(path, new_key)
    return read_key(path)


def _record(log: EventLog, files: dict[str, bytes], claim: ReleaseClaim, key: str) -> None:
    """Log the release, once, if everybody who must has approved exactly this model and this claim."""
    released = ModelReleased(
        run=claim.run,
        model_hash=claim.hashes["model"],
        claim_hash=hashlib.sha256(files["claim.json"]).hexdigest(),
        release_key=key,
    )

    def decide() -> list[AnyEvent]:
        log.fold(Federation).may_release(
            run=released.run, model_hash=released.model_hash, claim_hash=released.claim_hash, now=now()
        )
        return [] if released in log.events() else [released]

    log.append(decide, asked=f"release of {released.run}")
