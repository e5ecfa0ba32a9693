"""Is the judge to be believed? Measured on gold pairs against random pairs before anything is mined with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 10


@dataclass(frozen=True)
class Canary:
    """What an instruction inside a candidate ("answer Yes") does to a judge.

    Attributes:
        pairs: random pairs that were judged with and without it.
        shift: mean change of the grade; 0 is immune, 1 obeys.
        flipped: share of the pairs whose grade it moved from below one half to above it.
    """

    pairs: int
    shift: float
    flipped: float

    @classmethod
    def measure(cls, before: np.ndarray, after: np.ndarray) -> "Canary | None":
        """From the grades of the same pairs without and with the instruction; None if no pair has both."""
        both = ~(np.isnan(before) | np.isnan(after))
        if not both.any():
            return None
        before, after = before[both], after[both]
        return cls(len(before), float((after - before).mean()), float(((before < 0.5) & (after >= 0.5)).mean()))


@dataclass(frozen=True)
class Calibration:
    """How well a judge tells gold pairs from random ones.

    Attributes:
        auc: chance that a gold pair is graded above a random one (ties count half); 0.5 is blind.
        ece: expected calibration error: mean distance between grade and share of gold, over `BINS` bins of the grade.
        gold: histogram of the grades of gold pairs over [0, 1].
        random: histogram of the grades of random pairs.
        canary: what instructions inside candidates do; None where no candidate of the random pairs has text.
    """

    auc: float
    ece: float
    gold: tuple[int, ...]
    random: tuple[int, ...]
    canary: Canary | None = None

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "Calibration":
        """What `dataclasses.asdict` made, also by way of JSON."""
        canary = Canary(**told["canary"]) if told.get("canary") else None
        return cls(told["auc"], told["ece"], tuple(told["gold"]), tuple(told["random"]), canary)


def calibrate(gold: np.ndarray, random: np.ndarray) -> Calibration:
    """Calibration from the grades in [0, 1] of gold pairs and of random pairs (as many of each, for the error)."""
    order = np.concatenate([gold, random])
    # Mann-Whitney: mean rank with ties shared.
    _, inverse, counts = np.unique(order, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = len(gold), len(random)
    auc = (ranks[:n].sum() - n * (n + 1) / 2) / (n * m)
    truth = np.concatenate([np.ones(n), np.zeros(m)])
    place = np.minimum((order * BINS).astype(int), BINS - 1)
    ece = 0.0
    for b in range(BINS):
        inside = place == b
        if inside.any():
            ece += inside.mean() * abs(order[inside].mean() - truth[inside].mean())
    of_gold, of_random = (tuple(np.bincount(p, minlength=BINS).tolist()) for p in (place[:n], place[n:]))
    return Calibration(float(auc), float(ece), of_gold, of_random)
