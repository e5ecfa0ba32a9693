"""A judge that weighs two opinions: a reranker's log-odds and an embedder's cosine, calibrated on held-out pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hardwon.errors import DataError
from hardwon.items import Example, Item
from hardwon.models import Encoder, Pair, Scorer
from hardwon.randomness import generator
from hardwon.search.retrieve import retrieve

EXAMPLES = 600
RIDGE, ROUNDS = 1e-3, 50  # of Newton's method, which needs about ten


@dataclass(frozen=True)
class Blend:
    """Log-odds = bias + cosine x of_cosine + odds x of_odds: a logistic regression on two features.

    A small reranker alone may know less than the embedder whose confusions it should judge; together they know more than
    either, and the fit makes the grade a probability.

    Attributes:
        encoder: gives cosines.
        reranker: gives log-odds.
        bias: constant.
        of_cosine: weight of the cosine.
        of_odds: weight of the log-odds.
    """

    encoder: Encoder
    reranker: Scorer
    bias: float
    of_cosine: float
    of_odds: float

    @property
    def fingerprint(self) -> str:
        """Of both models and the weights."""
        weights = f"{self.bias:.6g},{self.of_cosine:.6g},{self.of_odds:.6g}"
        return f"blend:{self.encoder.fingerprint}:{self.reranker.fingerprint}:{weights}"

    @classmethod
    def fit(
        cls,
        encoder: Encoder,
        reranker: Scorer,
        examples: Sequence[Example],
        *,
        most: int = EXAMPLES,
        depth: int = 4,
        seed: int = 0,
    ) -> "Blend":
        """Calibrate on held-out examples: their gold against the `depth` nearest wrong candidates and one at random.

        At most `most` are used, drawn at random. Both classes weigh the same, so a grade of one half is the border between
        them.

        Raises:
            DataError: no wrong candidates, since all examples share one gold.
        """
        some = generator(seed, "blend").sample(range(len(examples)), min(len(examples), most))
        pairs, truth = _labelled(encoder, [examples[n] for n in sorted(some)], depth, seed)
        if not truth.any() or truth.all():
            raise DataError("calibration needs examples with different gold: there are no wrong candidates among them")
        features = np.stack(
            [np.ones(len(pairs)), _cosines(encoder, pairs), reranker.score_pairs(pairs, progress="calibrating the judge")],
            axis=1,
        )
        weights = np.where(truth, 0.5 / truth.mean(), 0.5 / (1 - truth.mean()))
        bias, of_cosine, of_odds = _logistic(features.astype(np.float64), truth, weights)
        return cls(encoder, reranker, bias, of_cosine, of_odds)

    def score_pairs(self, pairs: Sequence[Pair], *, progress: str = "") -> np.ndarray:
        """Log-odds that each candidate belongs to its query, [n], float32."""
        odds = self.reranker.score_pairs(pairs, progress=progress)
        return (self.bias + self.of_cosine * _cosines(self.encoder, pairs) + self.of_odds * odds).astype(np.float32)


def _cosines(encoder: Encoder, pairs: Sequence[Pair]) -> np.ndarray:
    vectors = encoder.encode([item for pair in pairs for item in pair])
    return np.einsum("nd,nd->n", vectors[0::2], vectors[1::2])


def _labelled(encoder: Encoder, examples: Sequence[Example], depth: int, seed: int) -> tuple[list[Pair], np.ndarray]:
    """(query, candidate) pairs with their truth: within each source, gold, near misses and a random candidate."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.source, []).append(example)
    pairs: list[Pair] = []
    truth: list[bool] = []
    for source, group in sorted(groups.items()):
        pool = list({g.key: g for e in group for g in e.gold}.values())
        contents = [item.content for item in pool]
        known = [{g.content for g in e.gold} | e.related | _own(e.query) for e in group]
        wrong = [[n for n, content in enumerate(contents) if content in k] for k in known]
        found = retrieve(encoder.encode([e.query for e in group]), encoder.encode(pool), depth, exclude=wrong)
        for e, ids, left_out in zip(group, found.ids, wrong, strict=True):
            others = [n for n in range(len(pool)) if n not in set(left_out)]
            chosen = [int(n) for n in ids if n >= 0] + generator(seed, "blend", source, e.query.key).sample(
                others, min(1, len(others))
            )
            pairs += [(e.query, e.gold[0]), *((e.query, pool[n]) for n in dict.fromkeys(chosen))]
            truth += [True, *([False] * len(dict.fromkeys(chosen)))]
    return pairs, np.array(truth)


def _own(query: Item) -> set[str]:
    return {query.content} | ({query.wordless.content} if query.wordless else set())


def _logistic(features: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """Weighted logistic regression by Newton's method, with a little ridge so that separable classes stay finite."""
    scale = features.std(axis=0)
    scale[0] = 1.0
    scale[scale == 0] = 1.0
    x = features / scale
    beta = np.zeros(3)
    for _ in range(ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -50, 50)))
        gradient = x.T @ (weights * (p - truth)) + RIDGE * len(x) * beta
        hessian = (x * (weights * p * (1 - p))[:, None]).T @ x + RIDGE * len(x) * np.eye(3)
        step = np.linalg.solve(hessian, gradient)
        beta = beta - step
        if np.abs(step).max() < 1e-10:
            break
    bias, of_cosine, of_odds = (beta / scale).tolist()
    return bias, of_cosine, of_odds
