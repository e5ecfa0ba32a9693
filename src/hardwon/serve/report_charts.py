"""Geometry of the report's charts; the marks themselves are drawn by `templates/charts.html`.

Plain SVG from our own templates instead of a plotting library: it takes its colours from the page's CSS variables (so
it follows light, dark and print), its text is the page's text, and positions along x are percentages, so a chart fits
a phone and a wide screen without its letters shrinking. A plotting library would fix all three when it draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hardwon.serve.report_content import Calibration, Curve, Point, Results

MOST_POINTS = 200
ROW, GROUP = 22.0, 46.0  # height in pixels of a row, and of the name above a group of rows


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis: position (percent along x, pixels along y) and its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A value with its interval in a forest plot; x in percent of the width, y in pixels."""

    y: float
    x: float
    low: float | None
    high: float | None
    series: int
    label: str


@dataclass(frozen=True, slots=True)
class Forest:
    """Dots and intervals, grouped. `groups` holds (y, name, number of data sets)."""

    height: float
    groups: tuple[tuple[float, str, int], ...]
    dots: tuple[Dot, ...]
    ticks: tuple[Tick, ...]


def forest(results: Results) -> Forest:
    """One group per mean, one dot per label; the axis always runs from 0 to 100 %."""
    y, groups, dots = 0.0, [], []
    for mean in results.means:
        groups.append((y + GROUP - 18, mean.name, mean.tasks))
        y += GROUP
        for series, (label, e) in enumerate(zip(results.labels, mean.estimates, strict=True)):
            low, high = (None, None) if e.low is None or e.high is None else (100 * e.low, 100 * e.high)
            dots.append(Dot(y + ROW / 2, 100 * e.value, low, high, series, label))
            y += ROW
    ticks = tuple(Tick(float(percent), f"{percent}") for percent in (0, 25, 50, 75, 100))
    return Forest(y, tuple(groups), tuple(dots), ticks)


@dataclass(frozen=True, slots=True)
class Line:
    """A line chart. `path` holds x in percent and y in pixels; `marks` are the same points, to be drawn as dots."""

    height: float
    path: str
    marks: tuple[tuple[float, float], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    binned: int


def line(values: Sequence[tuple[int, float]], height: float, last: int, *, percent: bool = False) -> Line:
    """A line through (step, value), at least one; x runs from 0 to `last`, so that charts of one stage can be compared.

    More than 200 points are averaged in bins of `binned` points each.
    """
    binned = math.ceil(len(values) / MOST_POINTS)
    bins = [values[i : i + binned] for i in range(0, len(values), binned)]
    points = [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in bins]
    xs = _ticks(0.0, float(last), 4, whole=True)
    ys = _ticks(min(y for _, y in points), max(y for _, y in points), 4 if height > 120 else 2)
    bottom, top = ys[0], ys[-1]

    def across(x: float) -> float:
        return round(100 * x / max(1, last), 2)

    def down(y: float) -> float:
        return round(height * (top - y) / (top - bottom), 2)

    marks = tuple((across(x), down(y)) for x, y in points)
    scale = 100 if percent else 1
    step = scale * (ys[1] - ys[0])
    digits = next(d for d in range(16) if d == 15 or math.isclose(round(step, d), step, rel_tol=1e-6))
    return Line(
        height,
        "M" + "L".join(f"{x} {y}" for x, y in marks),
        marks,
        tuple(Tick(across(x), f"{x:,.0f}") for x in xs if x <= last),
        tuple(Tick(down(y), f"{y * scale:.{digits}f}") for y in ys),
        binned,
    )


@dataclass(frozen=True, slots=True)
class Panels:
    """The charts of one training stage: its loss, and held-out precision at 1 if it was measured."""

    stage: str
    loss: Line
    precision: Line | None
    last: Point


def panels(curve: Curve) -> Panels:
    """Charts of a curve that has at least one point."""
    measured = [(p.step, p.precision) for p in curve.points if p.precision is not None]
    last = curve.points[-1]
    loss = line([(p.step, p.loss) for p in curve.points], 160.0, last.step)
    return Panels(curve.stage, loss, line(measured, 90.0, last.step, percent=True) if measured else None, last)


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of the histogram: x and width in percent, y and height in pixels; `series` is "gold" or "random"."""

    x: float
    width: float
    y: float
    height: float
    series: str
    note: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """Two histograms side by side in the same bins; y is the share of the pairs of each kind."""

    height: float
    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def histogram(judge: Calibration) -> Histogram:
    """Shares instead of counts, so that the two kinds can be compared when there are more pairs of one."""
    height, n = 190.0, len(judge.gold)
    counts = {"gold": judge.gold, "random": judge.random}
    shares = {kind: [count / max(1, sum(row)) for count in row] for kind, row in counts.items()}
    ys = _ticks(0.0, max(max(row) for row in shares.values()) or 1.0, 4)
    bars = []
    for offset, (kind, row) in enumerate(shares.items()):
        for i, share in enumerate(row):
            tall = height * share / ys[-1]
            note = f"{kind} pairs with a score from {i / n:.2f} to {(i + 1) / n:.2f}: {counts[kind][i]:,} ({share:.0%})"
            bars.append(Bar(100 * (i + 0.1 + 0.41 * offset) / n, 39 / n, height - tall, tall, kind, note))
    x_ticks = tuple(Tick(100 * i / 4, f"{i / 4:g}") for i in range(5))
    y_ticks = tuple(Tick(height * (1 - y / ys[-1]), f"{100 * y:g}") for y in ys)
    return Histogram(height, tuple(bars), x_ticks, y_ticks)


def _ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) from at or below `low` to at or above `high`; at least two."""
    width = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(width / count))
    steps = [power * m for m in (1, 2, 2.5, 5, 10)]
    step = next(s for s in steps if s * count >= width * (1 - 1e-9))
    if whole:
        step = max(1.0, float(math.ceil(step)))
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(start, max(end, start + 1) + 1)]
