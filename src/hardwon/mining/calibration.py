"""Is the judge to be believed? Measured on gold pairs against random pairs before anything is mined with it."""

from dataclasses import dataclass

import numpy as np

BINS = 10


@dataclass(frozen=True)
class Calibration:
    """How well a judge tells gold pairs from random ones.

    Attributes:
        auc: chance that a gold pair is graded above a random one (ties count half); 0.5 is blind.
        ece: expected calibration error: mean distance between grade and share of gold, over `BINS` bins of the grade.
        gold: histogram of the grades of gold pairs over [0, 1].
        random: histogram of the grades of random pairs.
    """

    auc: float
    ece: float
    gold: tuple[int, ...]
    random: tuple[int, ...]


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
    histograms = (tuple(np.bincount(p, minlength=BINS).tolist()) for p in (place[:n], place[n:]))
    return Calibration(float(auc), float(ece), *histograms)
