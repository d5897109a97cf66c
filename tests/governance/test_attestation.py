"""What a coordinator must show of the machine below it before a site works for it."""

import dataclasses
import hashlib

import machine
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.errors import InputError, RefusedError
from hubbub.governance import AttestationPolicy, Evidence, check_attestation, read_attestation_policy, read_evidence
from hubbub.governance.attestation import report_data
from hubbub.governance.snp import Tcb, read_report
from hubbub.tlog import Checkpoint

published, Machine, NOW, MEASURED = machine.published, machine.Machine, machine.NOW, machine.MEASURED
KEY = bytes(range(32))
HEAD = Checkpoint("hubbub.test/log", 7, hashlib.sha256(b"root").digest())


POLICY = AttestationPolicy(
    required=True,
    measurements=(MEASURED.hex(),),
    minimum_tcb={"Milan": Tcb(bootloader=4, snp=24, microcode=219)},
)


def check(chip=None, rules=POLICY, *, key=KEY, head=HEAD, size=HEAD.size, **changes):
    chip, sound = chip or Machine(), {"report_data": report_data(KEY, HEAD)}
    evidence = Evidence(size, chip.report(**sound | changes), chip.chain)
    return check_attestation(evidence, rules, coordinator_key=key, head=head, now=NOW, roots=chip.roots)


def test_a_coordinator_that_shows_what_the_site_knows_is_worked_for():
    attested = check()
    assert (attested.product, attested.measurement, attested.size) == ("Milan", MEASURED.hex(), 7)
    assert attested.tcb == Tcb(bootloader=4, snp=24, microcode=219)
    assert len(attested.report_hash) == 64


def test_reports_of_all_versions_are_read():
    for version in (3, 4, 5):
        check(version=version)
    check(version=2, cpu=bytes(3))
    check(version=4, mitigations=bytes(range(16)))


BROKEN_REPORTS = {
    "version 1": ({"version": 1}, "must be of version 2 to 5, found 1"),
    "version 6": ({"version": 6}, "must be of version 2 to 5, found 6"),
    "algorithm": ({"signature_algorithm": 2}, "signed with ECDSA P-384"),
    "loaded key": ({"signer": 4}, "signed by the chip's own key"),
    "masked chip": ({"signer": 2}, "signed by the chip's own key"),
    "unsigned": ({"signer": 28}, "signed by the chip's own key"),
    "policy bit 26": ({"policy": 0x3001F | 1 << 26}, "policy with known bits, found 0x403001f"),
    "policy bit 17": ({"policy": 0x1001F}, "policy with known bits, found 0x1001f"),
    "debug": ({"policy": 0xB001F}, "closed to its host's debugger"),
    "migration": ({"policy": 0x7001F}, "bound to its host, never migrated"),
    "privilege": ({"vmpl": 1}, "asked at privilege level 0, found 1"),
    "cpu in version 2": ({"version": 2}, "zero where nothing is defined"),
    "mitigations in version 3": ({"mitigations": b"\1" + bytes(15)}, "zero where nothing is defined"),
    "signer": ({"reserved_signer": b"\0\0\0\1"}, "zero where nothing is defined"),
    "cpu": ({"reserved_cpu": bytes(20) + b"\1"}, "zero where nothing is defined"),
    "current": ({"reserved_current": b"\1"}, "zero where nothing is defined"),
    "committed": ({"reserved_committed": b"\1"}, "zero where nothing is defined"),
    "end": ({"reserved_end": bytes(151) + b"\1"}, "zero where nothing is defined"),
    "chip": ({"chip_id": bytes(64)}, "for the chip that it names"),
    "firmware": ({"reported_tcb": bytes([4, 0, 0, 0, 0, 0, 24, 220])}, "for the firmware that it reports"),
    "reserved firmware": ({"reported_tcb": bytes([4, 0, 1, 0, 0, 0, 24, 219])}, "for the firmware that it reports"),
    "launched lower": ({"launch_tcb": bytes([4, 0, 0, 0, 0, 0, 23, 219])}, "must be at least bootloader 4.*snp 23"),
    "another image": ({"measurement": bytes(48)}, "must be of a VM that this site knows, found 00000"),
    "another binding": ({"report_data": bytes(64)}, "bound to the coordinator's key and its log of 7 entries"),
}


@pytest.mark.parametrize("case", BROKEN_REPORTS)
def test_a_report_that_breaks_one_rule_is_refused_though_a_chip_signed_it(case):
    changes, words = BROKEN_REPORTS[case]
    with pytest.raises(RefusedError, match=words) as caught:
        check(**changes)
    assert caught.value.message.endswith("; nothing trained, nothing sent")


BROKEN_CHAINS = {
    "another product's name": ({"name": b"\x16\x05Genoa"}, "its VCEK, must be of Milan, as its root, found 'Genoa'"),
    "no string": ({"name": b"\x0c\x05Milan"}, "named after a product"),
    "a longer string": ({"name": b"\x16\x04Milan"}, "named after a product"),
    "an empty name": ({"name": b""}, "named after a product"),
    "half a string": ({"name": b"\x16"}, "as AMD makes them"),
    "an umlaut": ({"name": b"\x16\x01\xe4"}, "as AMD makes them"),
    "loaded key's authority": ({"issuer": "SEV-VLEK-Milan"}, "its ASK, must be named SEV-Milan, found"),
    "loaded key": ({"subject": "SEV-VLEK"}, "its VCEK, must be named SEV-VCEK, found"),
    "weak key": ({"ask_bits": 2048}, "its VCEK, must be signed with RSA-PSS, 4096 bits, SHA-384"),
    "weak digest": ({"digest": SHA256}, "its ASK, must be signed with RSA-PSS, 4096 bits, SHA-384"),
    "old padding": ({"pads": False}, "its ASK, must be signed with RSA-PSS, 4096 bits, SHA-384"),
    "another curve": ({"curve": ec.SECP256R1}, "its VCEK, must be a key on P-384"),
    "no authority": ({"path": x509.BasicConstraints(ca=False, path_length=None)}, "its ASK, must be an authority"),
    "authority of authorities": ({"path": x509.BasicConstraints(ca=True, path_length=1)}, "must be an authority"),
    "no word on authority": ({"path": None}, "its ASK, must be an authority for VCEKs, found No"),
    "signs no certificates": ({"signs": False}, "its ASK, must be an authority for VCEKs"),
    "no chip": ({"left_out": "4"}, "for one chip and firmware, found no extension 1.3.6.1.4.1.3704.1.4"),
    "no microcode": ({"left_out": "3.8"}, "for one chip and firmware, found no extension 1.3.6.1.4.1.3704.1.3.8"),
    "long level": ({"level": lambda v: bytes([2, 2, 0, v])}, "its VCEK, must be of levels from 0 to 255"),
    "negative level": ({"level": lambda v: bytes([2, 1, v])}, "its VCEK, must be of levels from 0 to 255"),
    "no level": ({"level": lambda _: b""}, "its VCEK, must be of levels from 0 to 255"),
}


@pytest.mark.parametrize("case", BROKEN_CHAINS)
def test_a_chain_that_breaks_one_rule_is_refused_though_each_link_signed(case):
    changes, words = BROKEN_CHAINS[case]
    with pytest.raises(RefusedError, match=words):
        check(Machine(**changes))


def test_an_authority_that_the_root_did_not_sign_is_refused():
    ours, theirs = Machine(), Machine(root_key="another root")
    for chain in ((theirs.chain[0], theirs.chain[1], ours.chain[2]), (*theirs.chain[:2], theirs.chain[2])):
        evidence = Evidence(7, theirs.report(), chain)
        with pytest.raises(RefusedError, match=r"as AMD makes them|a root of AMD that is pinned"):
            check_attestation(evidence, POLICY, coordinator_key=KEY, head=HEAD, now=NOW, roots=ours.roots)


@pytest.mark.parametrize("level", ["bootloader", "tee", "snp", "microcode"])
def test_firmware_below_any_minimum_is_refused(level):
    minimum = Tcb(bootloader=4, snp=24, microcode=219)
    higher = msgspec.structs.replace(minimum, **{level: getattr(minimum, level) + 1})
    with pytest.raises(RefusedError, match=f"must be at least {higher}, found {minimum}; nothing trained"):
        check(rules=msgspec.structs.replace(POLICY, minimum_tcb={"Milan": higher}))


def test_a_product_without_a_minimum_is_refused():
    with pytest.raises(RefusedError, match="must be for Genoa, found Milan; nothing trained, nothing sent"):
        check(rules=msgspec.structs.replace(POLICY, minimum_tcb={"Genoa": Tcb()}))


OTHER_BINDINGS = {
    "key": {"key": bytes(32)},
    "size": {"size": 8},
    "head's size": {"head": dataclasses.replace(HEAD, size=8), "size": 8},
    "root": {"head": dataclasses.replace(HEAD, root=bytes(32))},
    "origin": {"head": dataclasses.replace(HEAD, origin="hubbub.test/lo")},
}


@pytest.mark.parametrize("case", OTHER_BINDINGS)
def test_evidence_for_another_coordinator_or_head_is_refused(case):
    with pytest.raises(RefusedError, match="must be bound to the coordinator's key and its log of"):
        check(**OTHER_BINDINGS[case])


def test_a_real_report_is_bound_to_no_coordinator_of_ours():
    report, chain = published("milan-3")
    policy = msgspec.structs.replace(POLICY, measurements=(read_report(report).measurement.hex(),))
    with pytest.raises(RefusedError, match="must be bound to the coordinator's key"):
        check_attestation(Evidence(7, report, chain), policy, coordinator_key=KEY, head=HEAD, now=NOW)


def test_the_binding_ignores_what_a_head_says_beside():
    assert report_data(KEY, dataclasses.replace(HEAD, extensions=("beside",))) == report_data(KEY, HEAD)
    with pytest.raises(InputError, match="coordinator's key, must be 32 bytes, found 31; nothing trained"):
        report_data(KEY[1:], HEAD)


def test_a_site_that_requires_evidence_works_for_nobody_without():
    with pytest.raises(RefusedError) as caught:
        check_attestation(None, POLICY, coordinator_key=KEY, head=HEAD, now=NOW)
    assert caught.value.message == (
        "this site's policy: attestation, must be shown, found none; nothing trained, nothing sent"
    )
    assert caught.value.hint == "[attestation] required in site.toml is this site's to change"


def test_a_site_that_requires_none_believes_none():
    assert check(rules=AttestationPolicy()) is None


LEVELS = st.builds(Tcb, bootloader=st.integers(3, 5), snp=st.integers(23, 25))
MEASUREMENTS = st.lists(st.sampled_from([MEASURED.hex(), "0" * 96]), min_size=1, unique=True).map(tuple)
POLICIES = st.builds(
    AttestationPolicy,
    required=st.just(value=True),
    measurements=MEASUREMENTS,
    minimum_tcb=st.dictionaries(st.sampled_from(["Milan", "Genoa"]), LEVELS, min_size=1),
)


@settings(max_examples=30)
@given(POLICIES, POLICIES)
def test_a_tighter_policy_never_admits_more(policy, other):
    both = set(policy.measurements) & set(other.measurements)
    products = set(policy.minimum_tcb) & set(other.minimum_tcb)
    if not both or not products:
        return
    highest = {
        name: Tcb(
            **{
                field: max(getattr(policy.minimum_tcb[name], field), getattr(other.minimum_tcb[name], field))
                for field in Tcb.__struct_fields__
            }
        )
        for name in products
    }
    tighter = AttestationPolicy(required=True, measurements=tuple(both), minimum_tcb=highest)
    assert admits(tighter) == (admits(policy) and admits(other))


MACHINE = Machine()


def admits(policy):
    try:
        check(MACHINE, policy)
    except RefusedError:
        return False
    return True


def test_evidence_has_one_form_on_the_wire():
    evidence = Evidence(7, b"report", (b"vcek", b"ask", b"ark"))
    assert read_evidence(evidence.encode()) == evidence
    for data in (b"", b"\x93", evidence.encode() + b"\0", b"\xcd\0\7".join(evidence.encode().split(b"\7"))):
        with pytest.raises(InputError, match="evidence, must be a size, a report and three certificates in msgpack"):
            read_evidence(data)


SITE = f"""
[policy]
epsilon = 3.0

[attestation]
required = true
measurements = ["{MEASURED.hex()}"]
minimum_tcb.Milan = {{ bootloader = 4, snp = 24, microcode = 219 }}
"""


def test_a_site_file_says_what_must_be_shown(tmp_path):
    site = tmp_path / "site.toml"
    site.write_text(SITE)
    assert read_attestation_policy(site) == POLICY
    site.write_text("[policy]\n")
    assert read_attestation_policy(site) == AttestationPolicy()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("required = true", "", "if, and only if, required = true"),
        ("required = true", "required = false", "if, and only if, required = true"),
        (f'"{MEASURED.hex()}"', "", "if, and only if, required = true"),
        ("minimum_tcb.Milan = ", "# ", "if, and only if, required = true"),
        ("required", "requires", "unknown field `requires`"),
        (MEASURED.hex(), MEASURED.hex()[1:], "matching regex"),
        ("Milan", "Turin", "Invalid enum value 'Turin'"),
        ("219", "256", "<= 255"),
        ("[attestation]", "[attestation", "Expected"),
        ("[attestation]", "a = " + "[" * 50_000, "recursion"),
    ],
)
def test_a_site_file_that_says_it_wrong_is_refused(tmp_path, old, new, words):
    site = tmp_path / "site.toml"
    site.write_text(SITE.replace(old, new))
    with pytest.raises(InputError, match=words) as caught:
        read_attestation_policy(site)
    assert caught.value.hint == "[attestation] knows required, measurements, minimum_tcb"


def test_a_site_file_that_is_not_there_requires_no_guess(tmp_path):
    with pytest.raises(InputError, match="must be a site file"):
        read_attestation_policy(tmp_path / "site.toml")
