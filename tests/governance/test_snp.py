"""Reports of real machines are believed, and nothing that differs from them in a bit."""

import datetime as dt
import random

import machine
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.errors import RefusedError
from hubbub.governance.snp import _LAYOUT, ROOTS, Report, read_tcb, verify_report

published, Machine, NOW = machine.published, machine.Machine, machine.NOW


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def is_believed(data, certificates, *, now=NOW, roots=ROOTS):
    """Whether it passes; anything but a refusal is an error here."""
    try:
        verify_report(data, certificates, now=now, roots=roots)
    except RefusedError:
        return False
    return True


def test_the_layout_is_the_signed_part_and_holds_every_field():
    assert _LAYOUT.size == 0x2A0
    assert len(_LAYOUT.unpack(bytes(0x2A0))) == len(Report._fields)


@pytest.mark.parametrize(
    ("name", "product", "levels"), [("milan-3", "Milan", (4, 0, 24, 219)), ("genoa-3", "Genoa", (10, 0, 23, 84))]
)
def test_reports_of_real_machines_are_believed(name, product, levels):
    found, report = verify_report(*published(name), now=NOW)
    assert (found, msgspec.structs.astuple(read_tcb(report.reported_tcb))) == (product, levels)
    assert report.measurement.hex().startswith("5feee30d6d7e1a29f403d70a4198237d")
    assert report.report_data.hex().endswith("00" * 32)


def test_a_real_machine_whose_host_may_debug_it_is_refused():
    with pytest.raises(RefusedError, match="VM, must be closed to its host's debugger"):
        verify_report(*published("milan-2-debug"), now=NOW)


@pytest.mark.parametrize("name", ["milan-3", "genoa-3"])
def test_no_sampled_bit_of_a_report_can_change(name):
    report, chain = published(name)
    bits = random.Random(name).sample(range(8 * len(report)), 200)
    assert not [bit for bit in bits if is_believed(flipped(report, bit), chain)]


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1, 2])
def test_no_bit_of_certificates_and_no_byte_of_a_report_can_change(place):
    report, chain = published("milan-3")
    sound = [report, *chain[:2]]  # the root is compared by its hash
    for bit in range(0, 8 * len(sound[place]), 1 if place else 3):
        data, vcek, ask = [*sound[:place], flipped(sound[place], bit), *sound[place + 1 :]]
        assert not is_believed(data, (vcek, ask, chain[2]))


@pytest.mark.parametrize("place", range(3))
def test_no_sampled_bit_of_a_certificate_can_change(place):
    report, chain = published("milan-3")
    for bit in random.Random(place).sample(range(8 * len(chain[place])), 200):
        assert not is_believed(report, (*chain[:place], flipped(chain[place], bit), *chain[place + 1 :]))


@pytest.mark.parametrize("place", [0, 1])
def test_no_bit_around_a_certificates_signature_can_change(place):
    report, chain = published("milan-3")
    end = len(chain[place]) - 512
    for bit in range(8 * (end - 8), 8 * (end + 1)):
        assert not is_believed(report, (*chain[:place], flipped(chain[place], bit), *chain[place + 1 :]))


@pytest.mark.parametrize("change", [lambda r: r[:-1], lambda r: r + b"\0", lambda _: b"", lambda r: r[:0x2A0]])
def test_a_report_of_another_length_is_refused(change):
    report, chain = published("milan-3")
    with pytest.raises(RefusedError, match="its report, must be of 1184 bytes, found"):
        verify_report(change(report), chain, now=NOW)


@given(st.binary(max_size=1300), st.tuples(*[st.binary(max_size=60)] * 3), st.booleans())
def test_noise_is_refused_and_breaks_nothing(data, certificates, is_long):
    data = (data * 1184)[:1184] if is_long and data else data
    assert not is_believed(data, certificates)
    assert not is_believed(data, published("milan-3")[1])
    assert not is_believed(published("milan-3")[0], certificates)


def test_a_chain_of_another_machine_is_refused():
    report, chain = published("milan-3")
    with pytest.raises(RefusedError, match="its certificate, must be for the chip that it names"):
        verify_report(report, published("milan-2-debug")[1], now=NOW)
    with pytest.raises(RefusedError, match="its certificate, must be for the chip that it names"):
        verify_report(report, published("genoa-3")[1], now=NOW)
    assert not is_believed(report, (chain[0], *published("genoa-3")[1][1:]))
    assert not is_believed(report, (chain[0], chain[1], published("genoa-3")[1][2]))
    assert not is_believed(report, chain[::-1])
    assert not is_believed(report, (chain[1], chain[1], chain[2]))
    assert not is_believed(report, chain[:2])


@pytest.mark.parametrize("year", [2020, 2024, 2033, 2050])
def test_certificates_outside_their_time_are_refused(year):
    with pytest.raises(RefusedError, match=f"must be used from .* found {year}"):
        verify_report(*published("milan-3"), now=dt.datetime(year, 10, 1, tzinfo=dt.UTC))


def test_a_root_that_is_not_pinned_is_refused():
    with pytest.raises(RefusedError, match="its ARK, must be a root of AMD that is pinned, found 69d063b4"):
        verify_report(*published("milan-3"), now=NOW, roots={})


def test_zeros_behind_the_signature_are_part_of_it():
    machine = Machine()
    report = machine.report()
    for byte in (0x2A0 + 48, 0x2E8 - 1, 0x2E8 + 48, 0x330 - 1, 0x330, 0x49F):
        assert not is_believed(flipped(report, 8 * byte), machine.chain, roots=machine.roots)
    assert not is_believed(report[:0x2A0] + bytes(512), machine.chain, roots=machine.roots)
    assert not is_believed(report[:0x2A0] + b"\xff" * 512, machine.chain, roots=machine.roots)
    assert is_believed(report, machine.chain, roots=machine.roots)
