"""Draws docs/objectives.svg: what weight each objective gives to one negative, against how close it comes to the positive.

The losses themselves are asked, through their gradients; nothing is derived here. altair and vl-convert-python draw it; they
are no dependencies of hardwon. From the root of the repository, without touching .venv:

    .venv/bin/python -m venv /tmp/plotenv && /tmp/plotenv/bin/pip install altair vl-convert-python
    PYTHONPATH=src:$(echo .venv/lib/python3*/site-packages) /tmp/plotenv/bin/python docs/objectives.py

With `--png FILE` also a picture to look at, on white and on black.
"""

import argparse
from pathlib import Path
from typing import Any

import altair as alt
import torch
from torch import Tensor

from hardwon.losses import AmplifiedInfoNCE, InfoNCE, JudgeAlignment, Loss, Targets, TopKInfoNCE

OUT = Path(__file__).with_suffix(".svg")
TEMPERATURE, POSITIVE = 0.02, 0.65
GAPS = torch.linspace(-0.4, 0.2, 121, dtype=torch.float64)  # of the one negative to the positive; with an edge at 0.1
GAPS = torch.cat([GAPS[GAPS < 0.0999], torch.tensor([0.09999, 0.10001], dtype=torch.float64), GAPS[GAPS > 0.1001]])
OTHERS, JUDGED = 1022, 7  # the rest of the batch, and how many of it a judge has read

# Colours and greys of middle lightness: the picture has no background, and pages are white or black.
INK, FAINT, RULE = "#737a82", "#8a9199", "#9aa0a633"
SHARPER, CHOSEN, AMPLIFIED, TAUGHT = "#2f81c7", "#b06ab3", "#d9622b", "#2a9d76"

PANELS: tuple[tuple[str, str, Loss, float | None, str], ...] = (
    ("hardness 9", "every negative × e^(9 s)", InfoNCE(TEMPERATURE, hardness=9.0), None, SHARPER),
    ("colder, α = 9", "the control: a sharper softmax", AmplifiedInfoNCE(TEMPERATURE, "colder", 9.0), None, SHARPER),
    ("top 8", "above positive + 0.1: dropped", TopKInfoNCE(TEMPERATURE), None, CHOSEN),
    ("judge says 0.2", "wrong: pushed away hard", JudgeAlignment(TEMPERATURE), 0.2, TAUGHT),
    ("amplify", "at most twice the weight", AmplifiedInfoNCE(TEMPERATURE), None, AMPLIFIED),
    ("hinge", "only within 0.1 of the positive", AmplifiedInfoNCE(TEMPERATURE, "hinge"), None, AMPLIFIED),
    ("redistribute, α = 9", "the same total, shared anew", AmplifiedInfoNCE(TEMPERATURE, "redistribute", 9.0), None, AMPLIFIED),
    ("judge says 0.88", "fits: drawn to the positive", JudgeAlignment(TEMPERATURE), 0.88, TAUGHT),
)


def make_scores() -> Tensor:
    """A row for every gap: the positive, the one negative, and the rest of a batch, spread as cosines of a model are."""
    chance = (torch.arange(OTHERS, dtype=torch.float64) + 0.5) / OTHERS
    rest = 0.25 + 0.1 * torch.special.ndtri(chance).flip(0)
    rows = len(GAPS)
    return torch.cat([torch.full((rows, 1), POSITIVE), POSITIVE + GAPS[:, None], rest.expand(rows, -1)], dim=1)


def make_targets(scores: Tensor, grade: float | None) -> Targets:
    """The first candidate is gold. With a grade, a judge has read the positive (0.9), the one negative and the hardest rest."""
    gold = torch.zeros(scores.shape, dtype=torch.bool)
    gold[:, 0] = True
    if grade is None:
        return Targets.of_gold(gold)
    judged, relevance = torch.zeros_like(gold), torch.zeros_like(scores)
    judged[:, : 2 + JUDGED] = True
    relevance[:, 0], relevance[:, 1], relevance[:, 2 : 2 + JUDGED] = 0.9, grade, torch.linspace(0.5, 0.05, JUDGED)
    return Targets(gold, judged, relevance, torch.ones_like(gold))


def weights(loss: Loss, grade: float | None) -> list[float]:
    """Temperature x queries x gradient on the score of the one negative: its entry of Pbar - Target."""
    scores = make_scores().requires_grad_()
    (slope,) = torch.autograd.grad(loss(scores, make_targets(scores, grade)), scores)
    return (slope[:, 1] * len(scores) * TEMPERATURE).tolist()


def panel(index: int, plain: list[float]) -> alt.LayerChart:
    """One objective in colour over plain InfoNCE in grey."""
    name, remark, loss, grade, colour = PANELS[index]
    low, high = (0.0, 2.0) if grade is None else (-2.0, 6.0)
    points = [
        {"gap": round(gap, 5), "weight": round(weight, 4), "plain": round(base, 4)}
        for gap, weight, base in zip(GAPS.tolist(), weights(loss, grade), plain, strict=True)
    ]
    ticks: dict[str, Any] = {"tickSize": 0, "domain": False, "tickCount": 5, "labelPadding": 5, "gridColor": RULE}
    gap = alt.X("gap:Q", title=None, scale=alt.Scale(domain=[-0.4, 0.2], nice=False))
    gap = gap.axis(values=[-0.4, -0.2, 0, 0.2], format="+.1f", labelExpr="datum.value == 0 ? '0' : datum.label", **ticks)
    height = alt.Y("weight:Q", title=None, scale=alt.Scale(domain=[low, high], nice=False))
    height = height.axis(values=[0, 1, 2] if grade is None else [-2, 0, 2, 4, 6], format="d", **ticks)
    chart = alt.Chart(alt.Data(values=points))
    layers = [
        alt.Chart(alt.Data(values=[{}])).mark_rule(color=FAINT, strokeDash=[2, 3]).encode(x=alt.datum(0.0)),
        chart.mark_area(color=colour, opacity=0.16).encode(x=gap, y=height, y2="plain:Q"),
        chart.mark_line(color=FAINT, strokeWidth=1.6).encode(x=gap, y=alt.Y("plain:Q")),
        chart.mark_line(color=colour, strokeWidth=2.6).encode(x=gap, y=height),
    ]
    if name == "hardness 9":
        layers.append(label("as close as", -0.01, 1.88, FAINT))
        layers.append(label("the positive", -0.01, 1.68, FAINT))
        layers.append(label("InfoNCE", 0.175, 0.55, FAINT))
    title = alt.TitleParams(name, subtitle=remark, color=colour, subtitleColor=INK, anchor="start", offset=8)
    return alt.layer(*layers).properties(title=title, width=158, height=128)


def label(text: str, gap: float, weight: float, colour: str) -> alt.Chart:
    """A name that ends beside its line."""
    mark = alt.Chart(alt.Data(values=[{}])).mark_text(text=text, align="right", color=colour, fontSize=11)
    return mark.encode(x=alt.datum(gap), y=alt.datum(weight))


def draw() -> Any:
    """The whole figure."""
    plain = weights(InfoNCE(TEMPERATURE), None)
    panels = [panel(index, plain) for index in range(len(PANELS))]
    half, hardest = len(panels) // 2, float(make_scores()[0, 2])
    title = alt.TitleParams(
        "How much one negative weighs, against how close it comes to the positive",
        subtitle=[
            "Across: its score minus the positive's. Up: its entry of Pbar − Target (below 0: pulled up, not pushed away).",
            f"Temperature {TEMPERATURE}; positive at {POSITIVE}; {OTHERS:,} other negatives at 0.25 ± 0.1, up to {hardest:.2f}."
            " The judge's panels have a scale of their own.",
        ],
        anchor="start",
        color=INK,
        subtitleColor=INK,
        fontSize=15,
        subtitleFontSize=12,
        subtitlePadding=6,
        offset=18,
    )
    # "flush": columns stand under each other whatever the numbers beside their axes.
    grid = alt.vconcat(*(alt.hconcat(*part, spacing=44, bounds="flush") for part in (panels[:half], panels[half:])), spacing=30)
    font = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
    return (
        grid.properties(title=title, background="transparent", padding=8)
        .configure(font=font, aria=False)
        .configure_view(stroke=None)
        .configure_axis(labelColor=INK, labelFontSize=11)
        .configure_title(fontSize=13, subtitleFontSize=11, subtitlePadding=3)
    )


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--png", type=Path, help="also a bitmap: FILE on white, and FILE with -dark on black")
    png = parser.parse_args().png
    chart = draw()
    chart.save(OUT)
    if png:
        chart.properties(background="white").save(png, ppi=144)
        chart.properties(background="#0d1117").save(png.with_stem(png.stem + "-dark"), ppi=144)


if __name__ == "__main__":
    main()
