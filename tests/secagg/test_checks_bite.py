"""Without the one check named for it, an attack succeeds: each check is there for a reason, and the tests see it.

`BITES` is the table check -> attacks. A check without an attack is in `BEHIND`, with the reason why taking it away
alone gives nothing away; that those are there too is test_client.py's, which asserts the words of every refusal.
"""

import importlib.util
import pathlib

import pytest

from hubbub.secagg import Client, Server, client, dealing, messages
from hubbub.secagg.checks import Checks
from hubbub.secagg.keys import derive, enc


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


adversaries = load(pathlib.Path(__file__).with_name("test_adversaries.py"))


def passes(*_args, **_kwargs):
    return None


def answer_anew(self, held, envelope, _data):
    return self._answer(held, messages.read(client._BODIES.get(envelope.kind, messages.Close), envelope.body))


def hold_any(self, _stage, _call):
    return self._held


def read_what_fits(kind, data):
    pieces = messages._cut(data)
    return kind(*(reader(piece) for reader, piece in zip(messages._readers(kind), pieces, strict=False)))


def key_of_both(secret, scope, *, sender, receiver):
    return derive(secret, salt=scope, info=enc("share", *sorted((sender, receiver))))


BITES = {
    (Checks, "_check_whole_roster", passes): {"grind_cohort"},
    (Checks, "_check_session", passes): {"crafted_model"},
    (Checks, "_check_parameters", passes): {"small_threshold"},
    (Checks, "_check_coordinator", passes): {"forged_open"},
    (Checks, "_check_mark", passes): {"crash_after_masked"},
    (Checks, "_check_stage", hold_any): {"retry_then_differ"},
    (Client, "_again", answer_anew): {"second_u_same_session", "resend_lost_reply"},
    (messages, "_read_part", read_what_fits): {"both_shares"},
    (Checks, "_check_receiver", passes): {"misrouted"},
    (dealing, "share_key", key_of_both): {"direction_reuse"},
    (Checks, "_check_signature", passes): {"impersonation", "other_model", "forged_consents"},
    (Checks, "_check_advert_signatures", passes): {"other_model"},
    (Checks, "_check_exchange_keys", passes): {"key_copy"},
    (Checks, "_check_session_size", passes): {"shrink_cohort"},
    (Checks, "_check_organisations", passes): {"one_organisation"},
    (Checks, "_check_dealt_adverts", passes): {"two_advert_lists"},
    (Checks, "_check_path", passes): {"frame_dealer"},
    (Checks, "_check_survivors_number", passes): {"sum_of_few"},
    (Checks, "_check_threshold_in_survivors", passes): {"isolate_by_dropouts"},
    (Checks, "_check_blocks", passes): {"differences"},
    (Checks, "_check_headers_agree", passes): {"hidden_sharers"},
    (Checks, "_check_consents_quorum", passes): {"pool_stuffing"},
    (Checks, "_check_consents_agree", passes): {"two_survivor_sets"},
    (Checks, "_check_consent_signatures", passes): {"forged_consents"},
    (Server, "_is_committed", lambda *_: True): {"bad_dealer_bad_holder"},
}

BEHIND = {
    "_check_opening": "the body that is signed is the session",
    "_check_current": "every later signature is over the session's name",
    "_check_order": "a later message rests on hashes that an earlier one set",
    "_check_peers": "calls _check_own and _check_signature",
    "_check_own": "what a participant said reaches the others, whose hashes then differ",
    "_check_names": "nobody outside the roster has a key to check a signature with",
    "_check_dealers": "a dealer in no advert has no place in the graph",
    "_check_dealing_signatures": "E differs in the headers of the others",
    "_check_edges": "gives the graph",
    "_check_dealers_number": "E differs in the headers of the others; survivors are counted again",
    "_check_threshold_in_dealers": "the holders among the survivors are counted again",
    "_check_threshold": "counts for the two that call it",
    "_check_delivered_number": "a share that is not delivered is not given back",
    "_check_survivors_dealt": "gives the survivors",
    "_check_self_survives": "a participant that is left out gives a share of its mask seed, as all do",
    "_check_headers": "calls _check_headers_agree and _check_peers",
    "_check_consents_are_survivors": "others than survivors have consented to no such set",
    "_check_outcome": "the session is over",
}
NAMES = [check for _, check, _ in BITES]


@pytest.fixture(params=BITES, ids=NAMES)
def removed(request, monkeypatch):
    """A check, taken away."""
    monkeypatch.setattr(*request.param)
    return request.param


def test_without_its_check_the_attack_succeeds_and_its_test_fails(removed):
    for name in BITES[removed]:
        assert adversaries.ATTACKS[name]()[1], name
        with pytest.raises(AssertionError):
            getattr(adversaries, f"test_{name}")()


def test_without_a_check_honest_sessions_are_as_before(removed):
    for world in (adversaries.World(5), adversaries.World(7, neighbours=5, threshold=4)):
        total = world.play(gone={"site-04": "masked"})
        assert world.is_exact(total, [name for name in world.names if name != "site-04"])
        assert world.refusals == {}


@pytest.mark.slow
def test_without_a_check_no_other_attack_succeeds(removed):
    others = set(adversaries.ATTACKS) - BITES[removed]
    assert {name for name in others if adversaries.ATTACKS[name]()[1]} == set()


@pytest.mark.slow
@pytest.mark.parametrize("check", ["_check_own", "_check_threshold_in_dealers", "_check_self_survives"])
def test_a_check_with_others_behind_it_alone_opens_nothing(monkeypatch, check):
    monkeypatch.setattr(Checks, check, passes)
    assert {name for name, attack in adversaries.ATTACKS.items() if attack()[1]} == set()


def test_each_attack_has_its_check_and_each_check_its_attack_or_a_reason():
    assert set().union(*BITES.values()) == set(adversaries.ATTACKS)
    checks = {name for name in dir(Checks) if name.startswith("_check_")}
    assert checks == ({name for name in NAMES if name.startswith("_check_")} | set(BEHIND))
    assert not set(NAMES) & set(BEHIND)
