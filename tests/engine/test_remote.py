"""A coordinator's log from afar: what an honest one shows, and every lie of one that holds the log's key."""

import time

import pytest

from hubbub.engine.acts import LocalActs
from hubbub.engine.answering import answer, log_handlers
from hubbub.engine.commands import Done, LogPart, ReadLog, RecordAct, read_answer, read_command
from hubbub.engine.enrol import admit
from hubbub.engine.home import open_log, open_log_key
from hubbub.engine.remote import RemoteActs
from hubbub.errors import InputError, RefusedError, VerificationError
from hubbub.events import encode_event
from hubbub.governance import Federation, decide, new_keys, propose, read
from hubbub.governance.acts import FoundFederation, OpenIncident
from hubbub.governance.certificates import make_request, read_request
from hubbub.governance.roles import packaged
from hubbub.tlog import Checkpoint, Note, Signer, Store, sign_checkpoint
from hubbub.tlog.checkpoint import parse_checkpoint
from hubbub.tlog.keys import ED25519
from hubbub.tlog.note import parse_note
from hubbub.tlog.verify import is_fork

DAY = 86_400
PEOPLE = {
    "operator": ("it", "operator"),
    "officer": ("board", "privacy-officer"),
    "auditor": ("watch", "auditor"),
    "site-a": ("clinic-a", "node"),
}
KEYS = {name: new_keys(name, organisation=org, role=role) for name, (org, role) in PEOPLE.items()}


class Hub:
    """A coordinator's home and what it answers; `lie` may change an answer on its way."""

    def __init__(self, folder):
        self.folder, self.home = folder, folder / "home"
        self.log = open_log(self.home)
        self.key = open_log_key(self.home)
        self.handlers = log_handlers(self.log, self.key, lambda: int(time.time()))
        self.lie = lambda _command, reply: reply
        self.sent = []

    def ask(self, data):
        command = read_command(data)
        self.sent.append(command)
        return self.lie(command, read_answer(answer(data, "site-a", self.handlers))).encode()

    def reader(self, who="site-a"):
        request = read_request(make_request(KEYS[who]))
        membership = admit(self.home, [request], address="localhost:1", now=int(time.time()))[who]
        return RemoteActs(membership, self.folder, who, self.ask)

    def record(self, envelope):
        self.log.append(lambda: [self.log.fold(Federation).event(envelope, int(time.time()))])

    def propose(self, act, who="operator"):
        envelope = signed(act, who, self)
        self.record(envelope)
        return read(envelope).id

    def rewritten(self, change):
        """Another log under the same key: these entries, changed."""
        store = Store(self.folder / "other.db")
        store.append(lambda _: change(self.log.store.entries()))
        return store


def signed(act, who, hub=None):
    now, federation = int(time.time()), "" if hub is None else hub.log.fold(Federation).id
    return propose(act, KEYS[who].identity, at=now, expires=now + 7 * DAY, federation=federation)


def approval(case, who):
    now = int(time.time())
    return decide(case, KEYS[who].identity, at=now, expires=now + 7 * DAY)


def founding(name="heart"):
    return FoundFederation(name=name, cards=tuple(keys.card for keys in KEYS.values()), roles=packaged()[1])


def incident(text="a disk is lost"):
    return OpenIncident(severity="S3", summary=text)


@pytest.fixture
def hub(tmp_path):
    """Give a coordinator at whose log a founding act waits."""
    hub = Hub(tmp_path)
    hub.case = hub.propose(founding())
    yield hub
    hub.log.close()


@pytest.fixture
def founded(hub):
    """Give a coordinator whose federation is founded, over the wire."""
    for who in ("officer", "auditor", "site-a"):
        reader = hub.reader(who)
        reader.record(approval(hub.case, who), int(time.time()))
        reader.close()
    return hub


@pytest.fixture
def reader(founded):
    """Give somebody who has read the log once."""
    reader = founded.reader()
    assert reader.state().id == founded.case
    yield reader
    reader.close()


# --- an honest coordinator


def test_everybody_founds_over_the_wire_and_reads_one_state(founded):
    for who in PEOPLE:
        reader = founded.reader(who)
        state, local = reader.state(), LocalActs(founded.log).state()
        assert (state.id, state.epoch, state.roster()) == (local.id, local.epoch, local.roster())
        assert state.id == founded.case
        reader.close()


def test_only_what_is_new_is_asked_for(founded, reader):
    founded.sent.clear()
    founded.propose(incident(), "auditor")
    assert len(reader.state().incidents) == 1
    assert founded.sent == [ReadLog(4)]
    assert reader.state() is reader.state()


def test_what_was_read_is_there_when_the_command_is_typed_again(founded, reader):
    reader.close()
    again = founded.reader()
    founded.sent.clear()
    assert again.state().name == "heart"
    assert founded.sent == [ReadLog(4)]
    again.close()


def test_an_act_is_recorded_and_found(founded, reader):
    before = founded.log.store.size
    reader.record(signed(incident(), "auditor", founded), int(time.time()))
    assert founded.log.store.size == before + 1
    assert [item.summary for item in reader.state().incidents.values()] == ["a disk is lost"]


def test_what_may_not_be_recorded_is_refused_before_it_is_sent(founded, reader):
    founded.sent.clear()
    with pytest.raises(RefusedError, match="may not ask for open-incident"):
        reader.record(signed(incident(), "officer", founded), int(time.time()))
    assert not [command for command in founded.sent if isinstance(command, RecordAct)]


def test_a_refusal_there_is_a_refusal_here(founded, reader):
    """Somebody else was faster: only the coordinator knows."""
    envelope = signed(incident(), "auditor", founded)

    def faster(command, reply):
        if isinstance(command, ReadLog) and not founded.log.store.size > 4:
            founded.record(envelope)
        return reply

    founded.lie = faster
    with pytest.raises(RefusedError, match="is recorded once, found a second time"):
        reader.record(envelope, int(time.time()))


def test_a_long_log_is_read_in_parts(founded, reader):
    for number in range(30):
        founded.propose(incident(f"{number} " + "x" * 400), "auditor")
    real = founded.lie

    def short(command, reply):
        if not isinstance(command, ReadLog) or len(reply.entries) < 7:
            return reply
        end = command.start + 7
        head = sign_checkpoint(founded.log.store, founded.key, end)
        return LogPart(bytes(head), command.start, reply.entries[:7], is_last=False)

    founded.lie = short
    assert len(reader.state().incidents) == 30
    assert [command.start for command in founded.sent[-5:]] == [4, 11, 18, 25, 32]
    assert real is not short


# --- lies


def refused(reader, words):
    with pytest.raises(VerificationError) as caught:
        reader.state()
    assert words in caught.value.message
    return caught.value


def heads(hub, name="site-a"):
    return sorted(path.name for path in (hub.folder / f"{name}.heads").iterdir())


def showing(store, key):
    """Answers from another log, in full."""

    def lie(command, reply):
        if not isinstance(command, ReadLog):
            return reply
        first = min(command.start, store.size)
        return LogPart(bytes(sign_checkpoint(store, key)), first, tuple(store.entries(first)), is_last=True)

    return lie


def test_an_entry_that_was_changed_is_found_by_whoever_reads_for_the_first_time(founded):
    def lie(command, reply):
        changed = (*reply.entries[:-1], reply.entries[-1].replace(b"decided", b"proposed"))
        return LogPart(reply.checkpoint, command.start, changed, reply.is_last)

    founded.lie = lie
    reader = founded.reader("auditor")
    reader.close()
    (founded.folder / "auditor.log.db").unlink()
    reader = founded.reader("auditor")
    refused(reader, "must show its log as its key signed it, found entries that do not lead to the root it signed")
    reader.close()


def test_an_entry_that_was_changed_and_signed_over_is_two_histories(founded, reader):
    """The coordinator rewrites its log under its own key: both heads convict it."""
    founded.propose(incident("the truth"), "auditor")
    assert len(reader.state().incidents) == 1
    store = founded.rewritten(lambda bodies: [*bodies[:-1], encode_event(other_event(founded, "another truth"))])
    founded.lie = showing(store, founded.key)
    error = refused(reader, f"{founded.key.name}, must show one history, found")
    assert error.hint.startswith(f"both heads are in {founded.folder / 'site-a.heads'}")
    assert heads(founded) == ["known-5", "shown-5"]
    notes = [parse_note((founded.folder / "site-a.heads" / name).read_bytes()) for name in heads(founded)]
    assert is_fork(*notes, founded.key.verifier)
    store.close()


def other_event(hub, text):
    return LocalActs(hub.log).state().event(signed(incident(text), "auditor", hub), int(time.time()))


def test_a_history_that_was_rewritten_and_has_grown_is_found(founded, reader):
    founded.propose(incident("the truth"), "auditor")
    reader.state()
    event = encode_event(other_event(founded, "another truth"))
    store = founded.rewritten(lambda bodies: [*bodies[:-1], event, bodies[-1]])
    founded.lie = showing(store, founded.key)
    refused(reader, "found entries that do not lead to the root it signed: the log was cut or rewritten")
    assert heads(founded) == ["known-5", "shown-6"]
    store.close()


def test_a_log_that_was_cut_is_found(founded, reader):
    """A revocation is hidden by showing the log as it was before."""
    founded.propose(incident(), "auditor")
    reader.state()
    store = founded.rewritten(lambda bodies: bodies[:-1])
    founded.lie = showing(store, founded.key)
    refused(reader, "must show one history, found a head of 4 entries after one of 5: the log was cut or rewritten")
    assert heads(founded) == ["known-5", "shown-4"]
    store.close()


def test_after_a_lie_the_copy_is_as_it_was(founded, reader):
    store = founded.rewritten(lambda bodies: bodies[:-1])
    honest, founded.lie = founded.lie, showing(store, founded.key)
    refused(reader, "must show one history")
    founded.lie = honest
    founded.propose(incident(), "auditor")
    assert len(reader.state().incidents) == 1
    store.close()


def test_an_act_that_is_said_to_be_recorded_and_is_not_is_found(founded, reader):
    lost = []

    def lie(command, reply):
        lost.append(command)
        return reply

    handlers = founded.handlers | {RecordAct: lambda _command, _name: Done()}
    founded.handlers, founded.lie = handlers, lie
    with pytest.raises(VerificationError, match="must show an act that it says it recorded, found it nowhere in 4"):
        reader.record(signed(incident(), "auditor", founded), int(time.time()))
    assert any(isinstance(command, RecordAct) for command in lost)


def test_a_head_of_another_key_is_refused(founded, reader):
    """A stranger in the coordinator's place, or one whose log key was lost."""
    stranger = Signer(founded.key.name, ED25519, bytes(32))
    founded.lie = showing(founded.log.store, stranger)
    refused(reader, "must show its log as its key signed it, found a head that its key did not sign")
    renamed = Signer("hubbub.local/other", ED25519, founded.key.seed)
    founded.lie = showing(founded.log.store, renamed)
    refused(reader, "found a head that its key did not sign")


def test_a_head_of_another_log_under_the_same_key_is_refused(founded, reader):
    store, key = founded.log.store, founded.key
    text = str(Checkpoint("hubbub.local/other", store.size, store.root()))
    head = bytes(Note(text, (key.sign(text),)))
    founded.lie = lambda _command, part: LogPart(head, part.start, part.entries, is_last=True)
    refused(reader, "found a head that its key did not sign")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda part: LogPart(part.checkpoint, part.start + 1, part.entries, is_last=True), "other entries than those"),
        (lambda part: LogPart(part.checkpoint, part.start, part.entries[1:], is_last=True), "other entries than those"),
        (lambda part: LogPart(part.checkpoint, part.start, (), is_last=False), "more entries promised and none sent"),
        (lambda _: Done(), "an answer of type Done"),
    ],
)
def test_an_answer_that_is_not_the_question_s_is_refused(founded, reader, change, found):
    founded.propose(incident(), "auditor")
    founded.lie = lambda _command, reply: change(reply)
    refused(reader, found)


@pytest.mark.parametrize("checkpoint", [b"", b"x\n\n", b"\xff"])
def test_a_head_that_is_none_is_refused(founded, reader, checkpoint):
    founded.lie = lambda _command, part: LogPart(checkpoint, part.start, part.entries, is_last=True)
    with pytest.raises(VerificationError):
        reader.state()


def test_an_act_that_was_not_valid_where_it_stands_is_found_although_the_log_signed_it(founded, reader):
    """The coordinator appends an approval by itself: its signature over the head does not make it one."""
    forged = encode_event(other_event(founded, "x")).replace(b"proposed", b"decided")
    founded.log.store.append(lambda _: [forged])
    refused(reader, "entry 4, must be a valid act where it stands")


def test_another_federation_than_the_memberships_is_refused(hub):
    """The operator founds something else under the log that members were given."""
    reader = hub.reader()
    hub.record(approval(hub.case, "officer"))
    hub.log.append(lambda: [hub.log.fold(Federation).event(signed(founding("other"), "officer"), int(time.time()))])
    other = list(hub.log.fold(Federation).cases)[-1]
    for who in ("operator", "auditor", "site-a"):
        hub.record(approval(other, who))
    refused(reader, f"must be the log of federation {hub.case[:16]}, found {other[:16]} founded in it")
    reader.close()


def test_a_copy_of_another_log_is_refused(founded, reader):
    other = Hub(founded.folder / "second")
    other.propose(founding())
    request = read_request(make_request(KEYS["site-a"]))
    membership = admit(other.home, [request], address="localhost:1", now=int(time.time()))["site-a"]
    with pytest.raises(InputError, match=r"must be a copy of hubbub.local/.*, found one of another log; nothing sent"):
        RemoteActs(membership, founded.folder, "site-a", other.ask)
    other.log.close()


def test_the_head_that_is_kept_is_signed_and_of_the_copys_size(founded, reader):
    assert parse_checkpoint(reader._copy.head.text).size == 4
    assert founded.key.verifier.signed_at(reader._copy.head) == 0
