"""Geometry of the charts: marks where the numbers say, inside the plot, with round ticks around them."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardwon.serve.report_charts import _ticks, forest, histogram, line, panels
from hardwon.serve.report_content import Calibration, Curve, Estimate, MeanRow, Point, Results

finite = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-6)


@given(finite, finite, st.integers(2, 6))
def test_ticks_enclose_the_range_in_equal_steps(a, b, count):
    low, high = min(a, b), max(a, b)
    ticks = _ticks(low, high, count)
    step = ticks[1] - ticks[0]
    slack = 1e-6 * step + 1e-9 * max(abs(low), abs(high))
    assert 2 <= len(ticks) <= count + 2
    assert ticks[0] <= low + slack and high - slack <= ticks[-1]
    assert [y - x for x, y in itertools.pairwise(ticks)] == pytest.approx([step] * (len(ticks) - 1), rel=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]), (0.0, 600.0, [0, 200, 400, 600]), (5.0, 5.2, [5, 5.05, 5.1, 5.15, 5.2])],
)
def test_ticks_are_round(low, high, expected):
    assert _ticks(low, high, 4) == pytest.approx(expected)


@given(st.lists(finite, min_size=1, max_size=700))
def test_a_line_stays_inside_its_plot(values):
    chart = line(list(enumerate(values)), 160.0, max(1, len(values) - 1))
    assert len(chart.marks) <= 200
    assert all(0 <= x <= 100 and -0.02 <= y <= 160.02 for x, y in chart.marks)
    assert chart.path.startswith("M") and chart.path.count("L") == len(chart.marks) - 1


def test_a_line_is_where_its_numbers_are():
    chart = line([(0, 0.0), (50, 1.0), (100, 4.0)], 160.0, 200)
    assert chart.marks == ((0, 160), (25, 120), (50, 0))
    assert chart.path == "M0.0 160.0L25.0 120.0L50.0 0.0"
    assert [(t.at, t.label) for t in chart.x_ticks] == [(0, "0"), (25, "50"), (50, "100"), (75, "150"), (100, "200")]
    assert [t.label for t in chart.y_ticks] == ["0", "1", "2", "3", "4"]


def test_many_points_are_averaged_in_bins():
    chart = line([(step, float(step % 3)) for step in range(600)], 160.0, 599)
    assert chart.binned == 3
    assert len(chart.marks) == 200
    assert {y for _, y in chart.marks} == {chart.marks[0][1]}


def test_one_point_is_enough():
    chart = panels(Curve("s", (Point(0, 0.0),)))
    assert len(chart.loss.marks) == 1
    assert chart.precision is None


def test_panels_of_a_stage_share_their_steps():
    chart = panels(Curve("s", (Point(0, 1.0), Point(50, 0.5, 0.25), Point(100, 0.25, 0.5))))
    assert chart.precision is not None
    assert chart.precision.marks[0][0] == chart.loss.marks[1][0] == 50
    assert [t.at for t in chart.precision.x_ticks] == [t.at for t in chart.loss.x_ticks]
    assert all(re.fullmatch(r"\d+", t.label) for t in chart.precision.y_ticks)


def test_forest_puts_dots_at_their_values():
    row = (Estimate(0.25), Estimate(0.5, 0.4, 0.7))
    chart = forest(Results(("chance", "model"), (), (MeanRow("all", 3, row), MeanRow("ood", 1, row))))
    assert [(d.x, d.low, d.high, d.series, d.label) for d in chart.dots[:2]] == [
        (25, None, None, 0, "chance"),
        (50, 40, pytest.approx(70), 1, "model"),
    ]
    heights = [d.y for d in chart.dots]
    assert heights == sorted(set(heights)) and heights[-1] < chart.height
    assert [(name, tasks) for _, name, tasks in chart.groups] == [("all", 3), ("ood", 1)]


def test_histogram_shows_shares_of_each_kind():
    chart = histogram(Calibration(0.9, 0.1, (1, 0, 3), (50, 50, 0)))
    top = float(chart.y_ticks[-1].label) / 100
    shares = {(b.series, round(b.x // (100 / 3))): b.height / chart.height * top for b in chart.bars}
    assert shares == pytest.approx(
        {("gold", 0): 0.25, ("gold", 1): 0, ("gold", 2): 0.75, ("random", 0): 0.5, ("random", 1): 0.5, ("random", 2): 0}
    )
    assert all(b.x + b.width <= 100 and b.y + b.height == pytest.approx(chart.height) for b in chart.bars)
    assert [b.x for b in chart.bars[:2]] == pytest.approx([100 * 0.1 / 3, 100 * 1.1 / 3])
    assert chart.bars[2].note == "gold pairs with a score from 0.67 to 1.00: 3 (75%)"


def test_histogram_of_a_kind_without_pairs():
    assert all(bar.height == 0 for bar in histogram(Calibration(0.5, 0.0, (0, 0), (0, 0))).bars)
