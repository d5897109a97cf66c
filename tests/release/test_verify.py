"""A bundle is believed whole or not at all."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import hubbub
from hubbub.cli import main
from hubbub.engine.home import open_log, open_log_key
from hubbub.errors import InputError, RefusedError, VerificationError
from hubbub.events import (
    BudgetCharged,
    BudgetGranted,
    BudgetReserved,
    BudgetSettled,
    Evaluated,
    ModelReleased,
    ParticipantJoined,
    RoundClosed,
    RunFinished,
    RunStarted,
    encode_event,
)
from hubbub.randomness import SeededRandomness
from hubbub.release.bundle import MODEL, as_json, write_bundle
from hubbub.tlog import Policy, Store, sign_checkpoint, tiles
from hubbub.tlog.policy import Party

replace = msgspec.structs.replace


@pytest.fixture
def released(make_study, run):
    """A small run's bundle."""
    return hubbub.release_run(run(make_study()).out)


def verify(bundle, **options):
    return hubbub.verify_bundle(bundle, **options).checks


def test_a_bundle_verifies_and_says_what_was_checked(released):
    names = [check.what for check in verify(released)]
    assert names == [
        "files", "log", "keys", "model", "plan", "acts", "budget", "recomputed plan", "recomputed claim",
    ]  # fmt: skip


def test_a_bundle_is_verified_when_the_call_returns(released):
    found = hubbub.verify_bundle(str(released), recompute=False)
    assert found.claim == msgspec.json.decode((released / "claim.json").read_bytes(), type=type(found.claim))
    (released / "claim.json").write_bytes(b"{}")
    with pytest.raises(VerificationError):
        hubbub.verify_bundle(str(released), recompute=False)


def test_without_recomputation_all_but_the_numbers_is_checked(released):
    assert [check.what for check in verify(released, recompute=False)][-1] == "budget"


def test_without_recomputation_no_accountant_is_loaded(released):
    code = (
        "import sys\n"
        "from hubbub.cli import main\n"
        f"assert main(['verify', '--no-recompute', {str(released)!r}]) == 0\n"
        "assert not {'torch', 'dp_accounting', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_verifying_imports_no_torch_and_opens_no_network(released):
    code = (
        "import sys, socket\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from hubbub.cli import main\n"
        f"assert main(['verify', {str(released)!r}]) == 0\n"
        "assert not {'torch', 'sklearn'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def places(bundle, every):
    """Each file of a bundle, with places in it."""
    for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
        size = path.stat().st_size
        yield from ((path, place) for place in range(0, size, every if size > every else 1))


def assert_every_flip_is_seen(bundle, every):
    count = 0
    for path, place in places(bundle, every):
        content = bytearray(path.read_bytes())
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        with pytest.raises(VerificationError) as seen:
            verify(bundle, recompute=False)
        assert seen.value.exit_code == 3
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        count += 1
    assert verify(bundle, recompute=False)
    return count


@pytest.mark.slow
def test_flipped_bits_all_over_a_bundle_are_seen(released):
    assert assert_every_flip_is_seen(released, every=997) > 100


@pytest.mark.slow
def test_every_flipped_byte_of_a_bundle_is_seen(released):
    size = sum(path.stat().st_size for path in released.rglob("*") if path.is_file())
    assert assert_every_flip_is_seen(released, every=1) == size


def test_a_file_more_a_file_less_and_a_link_are_seen(released, tmp_path):
    extra = released / "log" / "extra"
    extra.write_bytes(b"")
    with pytest.raises(VerificationError, match="'log/extra', must be listed"):
        verify(released)
    extra.unlink()
    moved = released / "plan.json"
    moved.rename(tmp_path / "plan.json")
    with pytest.raises(VerificationError, match=r"plan\.json"):
        verify(released)
    moved.symlink_to(tmp_path / "plan.json")
    with pytest.raises(VerificationError):
        verify(released)


@pytest.mark.parametrize("name", ["release.pub", "bundle.sig", "log/checkpoint"])
def test_without_a_key_a_signature_or_a_head_nothing_is_verified(released, name):
    (released / name).unlink()
    with pytest.raises(VerificationError):
        verify(released)


def test_the_command_line_says_so_by_its_exit_code(released, capsys):
    assert main(["verify", str(released)]) == 0
    assert "verified: Against" in capsys.readouterr().out
    assert main(["verify", str(released), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["verified"], told["recomputed"]) == (True, True)
    assert main(["verify", str(released), "--no-recompute"]) == 0
    assert "verified, but for plan and claim, which were not computed again: Against" in capsys.readouterr().out
    (released / "plan.json").write_bytes(b"{}")
    assert main(["verify", str(released)]) == 3
    assert main(["verify", str(released), "--policy", "nowhere"]) == 2


def test_a_bundle_is_there_whole_or_not_at_all(released, tmp_path):
    """Else a release that was interrupted would never be made: a coordinator takes a bundle that is there for done."""
    from cryptography.hazmat.primitives.asymmetric import ec

    home, bundle = released.parents[1] / "home", tmp_path / "new" / "bundle"
    store, signer = Store(home / "log.db"), open_log_key(home)
    head, policy = sign_checkpoint(store, signer), Policy((Party(signer.verifier),))
    key = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(InputError, match="must be of curve secp256r1"):
        write_bundle(bundle, {MODEL: b""}, store=store, checkpoint=head, policy=policy, key=key)
    store.close()
    assert not list(bundle.parent.iterdir())


# --- a releaser who lies signs with the right keys: the log tells


def forge(bundle, change):
    """Change a bundle and sign it again with its own key, as its releaser could."""
    from hubbub.release.model_signing import read_key, sign_folder

    key = read_key(bundle.parents[1] / "home" / "release.key")
    change(bundle)
    for folder, name in ((bundle / "model", "model/model.sig"), (bundle, "bundle.sig")):
        (bundle / name).unlink()
        sign_folder(folder, key, bundle / name)


def rewrite(name, change):
    def edit(bundle):
        document = json.loads((bundle / name).read_bytes())
        change(document)
        (bundle / name).write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")

    return edit


LIES = {
    "a smaller epsilon": (
        rewrite("claim.json", lambda claim: claim.update(epsilon_spent=0.1)),
        "claim, must be the one",
    ),
    "another model": (
        lambda bundle: (bundle / "model/model.safetensors").write_bytes(b"other"),
        "model, must be the one that the log says was released",
    ),
    "other settings": (
        rewrite("study.json", lambda study: study["settings"]["privacy"].update(epsilon=1.0)),
        "plan: study_hash, must follow from the approved settings",
    ),
    "a file that nothing checks": (
        lambda bundle: (bundle / "model/pytorch_model.bin").write_bytes(b"other"),
        r"'model/pytorch_model\.bin', must be a file that every release has",
    ),
    "another plan": (
        rewrite("plan.json", lambda plan: plan.update(retries=9)),
        "plan, must be the one that was reserved",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_releaser_that_changes_what_was_logged_is_found_out(released, lie):
    change, words = LIES[lie]
    forge(released, change)
    with pytest.raises(VerificationError, match=words):
        verify(released)


def relog(home, folder, change):
    """What an operator without witnesses can do: make the whole log again, and sign it with its own key."""
    log = open_log(home)
    events = log.events()
    log.close()
    folder.mkdir()
    store = Store(folder / "other.db")
    store.append(lambda _: [encode_event(event) for event in change(events)])

    def edit(bundle):
        shutil.rmtree(bundle / "log")
        tiles.export(store, sign_checkpoint(store, open_log_key(home)), bundle / "log")
        store.close()

    return edit


def test_a_charge_left_out_of_the_log_is_found_out(released, tmp_path):
    def left_out(events):
        return [event for event in events if not (isinstance(event, BudgetCharged) and event.round_number == 2)]

    forge(released, relog(tmp_path / "home", tmp_path / "other", left_out))
    with pytest.raises(VerificationError, match=r"budget, must be charged before round 2 of .* closes"):
        verify(released)


def replaced(kind, /, **changes):
    """Every event of a kind, changed."""
    return lambda events: [replace(event, **changes) if isinstance(event, kind) else event for event in events]


def inserted(before, /, **changes):
    """A changed copy of the last event of a kind, right after it."""

    def change(events):
        at = max(index for index, event in enumerate(events) if isinstance(event, before))
        return [*events[: at + 1], replace(events[at], **changes), *events[at + 1 :]]

    return change


CHEAP = {"@": "GaussianDpEvent", "noise_multiplier": 1e6}
FORGERIES = {
    "fewer attempts reserved": (replaced(BudgetReserved, attempts=5), "plan, must be reserved at its whole cost"),
    "a cheaper event reserved": (replaced(BudgetReserved, dp_event=CHEAP), "plan, must be reserved at its whole cost"),
    "less allowance for integers": (
        replaced(BudgetReserved, inflation=0.0),
        "plan, must be reserved at its whole cost",
    ),
    "others pay": (
        replaced(BudgetReserved, datasets=("x", "y", "z")),
        "budget, must be charged to its own participants",
    ),
    "one of them pays": (replaced(BudgetReserved, datasets=("a",)), "plan, must be reserved for every participant"),
    "nobody granted": (
        lambda events: [event for event in events if not isinstance(event, BudgetGranted)],
        "budget, a, has no budget, nothing was granted",
    ),
    "a budget that is too small": (replaced(BudgetGranted, epsilon=0.5), r"budget, a has epsilon 0\.50 of 0\.50 left"),
    "a budget for other units": (replaced(BudgetGranted, unit="client"), "budget, a, has a budget for unit = 'client'"),
    "another order in the middle": (inserted(BudgetGranted, order=1.1), "budget of c, keeps kind, unit, delta, order"),
    "an order that nobody could compute at": (
        replaced(BudgetGranted, order=1e18),
        r"budget, budget of a, must be of an order up to 1024, found 1e\+18",
    ),
    "a schedule of other plans": (
        replaced(BudgetGranted, kind="schedule", plan_hashes=("0" * 64,)),
        "budget, a, admits its listed plans only",
    ),
    "a charge settled away": (replaced(BudgetSettled, charged=3), "settles what was charged, found otherwise"),
    "settled twice": (inserted(BudgetSettled), "run, must be reserved, begin, end and be settled once"),
    "an attempt charged twice": (inserted(BudgetCharged), "is charged once for an attempt, found otherwise"),
    "more charges than reserved": (
        lambda events: [
            it
            for event in events
            for it in (
                [event, *(replace(event, attempt=at) for at in range(2, 9))]
                if isinstance(event, BudgetCharged) and event.round_number == 4
                else [event]
            )
        ],
        "is charged within its reservation, found otherwise",
    ),
    "a round closed twice": (inserted(RoundClosed), "run, must close rounds 1 to 4, each once"),
    "noise that can be repeated": (
        replaced(RunStarted, noise_source="injected"),
        "must have drawn its noise from the operating system",
    ),
    "sums in the clear": (replaced(RunStarted, secagg="elide"), "must have made its sums as its settings say"),
    "other code": (replaced(RunStarted, code_hash="0" * 64), "code, must be the one that was planned"),
    "fewer slots": (replaced(ParticipantJoined, slots=39), "run, must be of the participants that were planned"),
    "another model made": (replaced(RunFinished, model_hash="0" * 64), "model, must be the one that the run made"),
    "fewer shares of noise in a sum": (
        replaced(RoundClosed, participants=2),
        "run, must close each round over 3 participants or more, as many as it may ask",
    ),
    "more participants than there are": (replaced(RoundClosed, participants=4), "run, must close each round over 3"),
    "nobody knows how many": (replaced(RoundClosed, participants=None), "run, must close each round over 3"),
    "an earlier end": (replaced(RunFinished, rounds=3), "run, must end after its last round"),
    "better numbers": (replaced(Evaluated, metrics={"accuracy": 1.0, "loss": 0.0}), "claim, must be what follows from"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_an_operator_that_forges_the_log_is_found_out(released, tmp_path, name):
    change, words = FORGERIES[name]
    forge(released, relog(tmp_path / "home", tmp_path / "other", change))
    with pytest.raises(VerificationError, match=words):
        verify(released)


def test_the_size_of_a_secret_cohort_is_told_to_nobody(make_study, client_settings, run, tmp_path):
    cohort = {"participants": "secret-poisson", "probability": 0.5}
    bundle = hubbub.release_run(run(make_study(client_settings(cohort=cohort))).out)
    verify(bundle)
    forge(bundle, relog(tmp_path / "home", tmp_path / "other", replaced(RoundClosed, participants=3)))
    with pytest.raises(VerificationError, match="run, must close each round over"):
        verify(bundle)


def deep(levels=100_000):
    return b'{"@":' * levels + b"1" + b"}" * levels


def tampered(bundle, home, name, content):
    """A releaser that logs the hash of what it made up, and signs all of it."""
    digest = hashlib.sha256(content).hexdigest()

    def change(events):
        is_claim = name == "claim.json"
        return [
            replace(event, claim_hash=digest) if isinstance(event, ModelReleased) and is_claim else event
            for event in events
        ]

    def edit(folder):
        relog(home, home / f"other-{digest[:8]}", change)(folder)
        (folder / name).write_bytes(content)

    forge(bundle, edit)


@pytest.mark.parametrize("name", ["claim.json", "plan.json", "study.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"format": 1e999}',
        deep(),
        b"[" * 100_000,
        b'{"a": "\\ud800"}',
        b" " * 1_000,
    ],
    ids=["empty", "object", "list", "null", "no text", "infinity", "deep", "open", "half a sign", "blanks"],
)
def test_documents_that_nobody_can_read_are_refused(released, tmp_path, name, content):
    tampered(released, tmp_path / "home", name, content)
    with pytest.raises(VerificationError, match="this release is not verified"):
        verify(released)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("study.json", ("lock", "slots", "a"), 10**400),
        ("study.json", ("lock", "slots", "a"), -1),
        ("study.json", ("lock", "parameters"), 0),
        ("study.json", ("settings", "privacy", "epsilon"), 1e-300),
        ("study.json", ("settings", "training", "rounds"), 10**12),
        ("plan.json", ("rounds",), 0),
        ("plan.json", ("rounds",), 10**18),
        ("plan.json", ("inflation",), -1e6),
        ("plan.json", ("noise_multiplier",), 0),
        ("plan.json", ("dp_event",), {"@": "NoOpDpEvent"}),
        ("plan.json", ("dp_event",), {}),
        ("plan.json", ("epsilon_after_round",), []),
        ("claim.json", ("certifiable",), False),
        ("claim.json", ("epsilon_spent",), 1e-9),
        ("claim.json", ("lifetime", "epsilon_spent"), 0.0),
        ("claim.json", ("sentence",), "\u001b[32mverified"),
        ("claim.json", ("run",), "another"),
    ],
)
def test_documents_with_made_up_values_are_refused(released, tmp_path, name, place, value):
    document = json.loads((released / name).read_bytes())
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    content = json.dumps(document, indent=1).encode() if isinstance(value, int) and value > 2**63 else as_json(document)
    tampered(released, tmp_path / "home", name, content)
    with pytest.raises(VerificationError, match="this release is not verified"):
        verify(released)


HARMLESS = {BudgetGranted, ParticipantJoined, Evaluated}
"""Nothing that a run costs depends on their place or on a second one; what they say is checked elsewhere."""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["left out", "told twice", "told too early"])
def test_no_event_that_counts_can_be_left_out_told_twice_or_moved(released, tmp_path, how):
    log = open_log(tmp_path / "home")
    events = log.events()
    log.close()
    harmless = {"left out": {Evaluated}, "told twice": {*HARMLESS, ModelReleased}, "told too early": HARMLESS}[how]
    for at in range(1, len(events)):
        forged = {
            "left out": [*events[:at], *events[at + 1 :]],
            "told twice": [*events[: at + 1], *events[at:]],
            "told too early": [*events[: at - 1], events[at], events[at - 1], *events[at + 1 :]],
        }[how]
        forge(released, relog(tmp_path / "home", tmp_path / f"other-{at}", lambda _, forged=forged: forged))
        concerned = {type(event) for event in events[at - 1 if how == "told too early" else at : at + 1]}
        try:
            verify(released, recompute=False)
        except VerificationError:
            continue
        assert concerned & harmless, f"{how}: entry {at}, {concerned}"


# --- what is never released


def test_a_run_without_noise_is_not_released(make_study, settings, run):
    tables = settings(privacy={"noise": "none", "epsilon": None})
    with pytest.raises(RefusedError, match=r"must have added noise that nobody can repeat, .* found none; nothing"):
        hubbub.release_run(run(make_study(tables)).out)


def test_a_run_with_noise_that_can_be_repeated_is_not_released(make_study, run):
    result = run(make_study(), randomness=SeededRandomness(1))
    with pytest.raises(RefusedError, match="must have added noise that nobody can repeat"):
        hubbub.release_run(result.out)


def test_a_run_that_is_not_over_is_not_released(make_study, run, tmp_path):
    def watch(event, _plan):
        if isinstance(event, BudgetCharged) and event.round_number == 2:
            raise KeyboardInterrupt

    with pytest.raises(hubbub.HubbubError):
        run(make_study(), out=tmp_path / "half", watch=watch)
    with pytest.raises(RefusedError, match=r"must be the directory of a run that has ended, .*claim.json; nothing"):
        hubbub.release_run(tmp_path / "half")


def test_a_bundle_is_never_written_over(released):
    with pytest.raises(InputError, match="must be a new folder, found one; nothing released"):
        hubbub.release_run(Path(released).parent)


def test_a_release_is_logged_once(released, tmp_path):
    hubbub.release_run(Path(released).parent, out=tmp_path / "again")
    log = open_log(tmp_path / "home")
    assert sum(type(event).__name__ == "ModelReleased" for event in log.events()) == 1
    log.close()
    assert verify(tmp_path / "again")
