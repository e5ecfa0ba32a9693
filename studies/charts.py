"""Plots of a study; altair and vl-convert-python draw them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies.plan import TEACHER
from studies.table import Line, Results, lines, versus

# Colours of middle lightness: the pictures have no background, and pages are white or black.
INK, RULE, ZERO = "#737a82", "#9aa0a633", "#9aa0a6"
FAR = 0.03  # points of P@1 below the baseline at which a row would squeeze all others
COLOURS = {
    "baseline": "#8a9199",
    "controls": "#8a9199",
    "hardness": "#2f81c7",
    "amplified": "#d9622b",
    "selection": "#b06ab3",
    "mining": "#2a9d76",
    "recipes": "#c99a1b",
    "reranking": "#c2486b",
}

WIDTH, HEIGHT = 640, 460  # of the plot of gaps
SHORT = 8  # letters of a label that has room beside its neighbours


def differences(results: Results, file: Path) -> None:
    """Every row's difference to the baseline with its interval, and the seeds as points."""
    import altair as alt

    rows = []
    for line in lines(results):
        if line.gained is not None:
            rows.append(_bar(line.entry.title, line.entry.family, line.gained))
    order = [row["row"] for row in rows]
    data = alt.Data(values=rows)
    seeds = alt.Data(values=[{"row": row["row"], "family": row["family"], "seed": v} for row in rows for v in row["seeds"]])
    room = round(5.3 * max(map(len, order)))  # altair's own guess without a screen cuts the longest off
    y = alt.Y("row:N", sort=order, title=None, axis=alt.Axis(minExtent=room, labelLimit=room))
    colour = alt.Color("family:N", scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())), legend=None)
    count = len(next(iter(results.cells.values()))["hits"])
    title = f"points of P@1 over InfoNCE, mean of {count} data sets (95 % over seeds and queries; ticks: seeds)"
    x = alt.X("low:Q", title=title)
    chart = (
        alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(color=ZERO).encode(x="zero:Q")
        + alt.Chart(data).mark_rule(size=3, opacity=0.55).encode(y=y, x=x, x2="high:Q", color=colour)
        + alt.Chart(seeds).mark_tick(thickness=1.5, size=10, opacity=0.8).encode(y=y, x="seed:Q", color=colour)
        + alt.Chart(data).mark_point(filled=True, size=65, opacity=1).encode(y=y, x="mean:Q", color=colour)
    )
    save(chart.properties(width=520, height=19 * len(rows)), file)


def _bar(title: str, family: str, value: Any) -> dict[str, Any]:
    low, mean, high = (round(100 * v, 2) for v in (value.low, value.mean, value.high))
    return {"row": title, "family": family, "low": low, "mean": mean, "high": high, "seeds": [100 * s for s in value.seeds]}


def gaps(results: Results, file: Path) -> None:
    """LLaVE's figure: the gap between positive and nearest negatives, against what it is good for."""
    import altair as alt

    found = [line for line in lines(results) if line.entry.family != "reranking"]
    floor = max((line.means["all"] for line in found if line.entry.name == TEACHER), default=0.0) - FAR
    rows = [_point(line) for line in found if line.means["all"] > floor]
    left_out = [
        f"{line.entry.name} ({line.gap:.3f}, {100 * line.means['all']:.1f} %)" for line in found if line.means["all"] <= floor
    ]
    across, up = ([row[name] for row in rows] for name in ("gap", "p1"))
    scales = [alt.Scale(domain=_around(values), nice=False) for values in (across, up)]
    points = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "gap:Q",
            title="cosine of the positive less mean of the five nearest negatives",
            scale=scales[0],
            axis=alt.Axis(tickCount=8),
        ),
        y=alt.Y("p1:Q", title="P@1, mean of all data sets, %", scale=scales[1]),
        color=alt.Color("family:N", scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())), title=None),
    )
    named = _named([row for row in rows if row["family"] != "controls"], rows, scales)
    names = alt.layer(
        *(
            points.transform_filter(alt.datum.row == name).mark_text(fontSize=10, **how).encode(text="row:N")
            for name, how in named.items()
        )
    )
    title = f"far below and not shown: {', '.join(left_out)}" if left_out else ""
    save((points.mark_point(filled=True, size=70) + names).properties(width=WIDTH, height=HEIGHT, title=title), file)


def _around(values: Sequence[float]) -> list[float]:
    """A domain with room at both ends."""
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or 1.0
    return [low - room, high + room]


def _named(
    rows: Sequence[dict[str, Any]], all_rows: Sequence[dict[str, Any]], scales: Sequence[Any]
) -> dict[str, dict[str, Any]]:
    """Where each point's name stands: on the side where it hides least of other points and names."""

    def place(row: dict[str, Any]) -> tuple[float, float]:
        (left, right), (low, high) = scales[0].domain, scales[1].domain
        return WIDTH * (row["gap"] - left) / (right - left), HEIGHT * (high - row["p1"]) / (high - low)

    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in map(place, all_rows)]
    chosen = {}
    for row in rows:
        (x, y), wide = place(row), 5.6 * len(row["row"])
        sides = {
            (x + 7, y - 6, x + 7 + wide, y + 6): {"align": "left", "dx": 7},
            (x - 7 - wide, y - 6, x - 7, y + 6): {"align": "right", "dx": -7},
            (x - wide / 2, y - 19, x + wide / 2, y - 7): {"align": "center", "dy": -13},
            (x - wide / 2, y + 7, x + wide / 2, y + 19): {"align": "center", "dy": 13},
        }
        box = min(sides, key=lambda box: sum(_shared(box, other) for other in taken) + WIDTH * (box[0] < 0 or box[2] > WIDTH))
        taken.append(box)
        chosen[row["row"]] = sides[box]
    return chosen


def _shared(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Area that two boxes share."""
    wide, high = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)


def _point(line: Line) -> dict[str, Any]:
    return {
        "row": line.entry.name,
        "family": line.entry.family,
        "gap": round(line.gap, 4),
        "p1": round(100 * line.means["all"], 2),
    }


def sensitivities(results: Results, file: Path, families: Sequence[str]) -> None:
    """One small panel for each thing that was changed: difference to the baseline with its interval."""
    import altair as alt

    panels = []
    for family in families:
        rows = []
        for entry in results.suite.rows:
            value = versus(results, entry.name, "infonce") if entry.family == family else None
            if value is not None:
                rows.append(_bar(entry.title, family, value))
        if not rows:
            continue
        order = [row["row"] for row in rows]
        axis = alt.Axis(labelAngle=-30 if max(map(len, order)) > SHORT else 0)
        base = alt.Chart(alt.Data(values=rows)).encode(x=alt.X("row:N", sort=order, title=None, axis=axis))
        zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(color=ZERO).encode(y="zero:Q")
        y = alt.Y("low:Q", title="points")
        bars = base.mark_rule(size=3, color="#2f81c7", opacity=0.55).encode(y=y, y2="high:Q")
        panel = zero + bars + base.mark_point(filled=True, size=60, color="#2f81c7", opacity=1).encode(y="mean:Q")
        panels.append(panel.properties(width=46 * max(len(rows), 3), height=150, title=family))
    if panels:
        save(alt.concat(*panels, columns=3), file)


def save(chart: Any, file: Path) -> None:
    """As SVG."""
    axis = {"labelColor": INK, "titleColor": INK, "gridColor": RULE, "domainColor": RULE, "tickColor": RULE, "labelLimit": 320}
    words = {"labelColor": INK, "titleColor": INK}
    look = {"axis": axis | {"titleFontWeight": "normal"}, "legend": words, "title": {"color": INK, "fontSize": 12}}
    chart.configure(background="transparent", view={"stroke": None}, **look).save(str(file))
