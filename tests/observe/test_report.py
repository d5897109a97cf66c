"""The report says what the claim says, and draws it."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub.accounting.shown import at_least
from hubbub.observe.plot import Plot, ticks


class Balanced(HTMLParser):
    """Fail on a page whose tags do not match."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, _attrs):
        if tag not in {"meta", "line", "polyline"}:
            self.open.append(tag)

    def handle_startendtag(self, *_):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(result):
    return Path(result.out, "report.html").read_text()


def test_the_report_repeats_the_claim_and_draws_utility_and_epsilon(make_study, settings, run):
    result = run(make_study(settings(success={"accuracy": 0.75})))
    page = page_of(result)
    Balanced().feed(page)
    assert at_least(result.epsilon_spent) in page
    assert re.findall(r"<figcaption>(.*)</figcaption>", page) == ["test accuracy", "test loss", "epsilon"]
    assert "goal 0.75" in page
    assert "budget 4" in page
    assert page.count("<polyline") == 3
    assert "none: must be trusted" in page


def test_the_report_needs_nothing_from_elsewhere(make_study, run):
    page = page_of(run(make_study()))
    assert not re.search(r"<script|src=|href=|@import|url\(", page)


def test_a_run_without_noise_is_reported_as_unbounded(make_study, settings, run):
    page = page_of(run(make_study(settings(privacy={"noise": "none", "epsilon": None}))))
    assert "infinite" in page
    assert "without noise" in page
    assert "<figcaption>epsilon" not in page


def test_a_metric_name_from_a_study_cannot_write_html(client_settings, make_study, run):
    import numpy as np

    page = page_of(
        run(
            make_study(
                client_settings(),
                model=None,
                parameters=lambda: {"w": np.zeros(3)},
                train=lambda parameters, _examples, _rng: parameters,
                evaluate=lambda _parameters, _examples: {"<script>alert(1)</script>": 0.5},
            )
        )
    )
    assert "<script" not in page
    assert "&lt;script&gt;" in page


numbers = st.floats(-1e6, 1e6, allow_nan=False)


@given(numbers, numbers)
def test_ticks_span_what_they_are_for(one, other):
    low, high = min(one, other), max(one, other)
    marks = ticks(low, high)
    room = 1e-6 * (1 + abs(low) + abs(high))
    assert marks[0] <= low + room
    assert marks[-1] >= high - room
    assert 2 <= len(marks) <= 8
    assert marks == sorted(set(marks))


@given(st.lists(st.tuples(st.integers(1, 1000), numbers), min_size=1, max_size=30), st.none() | numbers)
def test_a_curve_stays_inside_its_frame(points, goal):
    plot = Plot("loss", sorted(points), goal)
    for x, y in points:
        assert 51 <= plot.x(x) <= 449
        assert 13 <= plot.y(y) <= 207


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_flat_curve_is_drawn(value):
    assert len(Plot("loss", [(1, value), (2, value)]).y_ticks) >= 2
