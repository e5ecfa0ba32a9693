"""How much a reranker's word should count, learned on held-out examples."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hardwon.evaluation.run import evaluate
from hardwon.evaluation.task import Benchmark
from hardwon.items import Item
from hardwon.models import Encoder, Pair, Scorer
from hardwon.search import Fused

WEIGHTS = (0.0, 0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Learned:
    """A fusion weight and how it was found.

    Attributes:
        fused: the reranker with the weight.
        tried: (weight, mean P@1 on the validation benchmark) of every weight tried.
    """

    fused: Fused
    tried: tuple[tuple[float, float], ...]


class _Remembered:
    """Encodes or scores each item or pair once, for all the weights that are tried."""

    def __init__(self, encoder: Encoder, reranker: Scorer):
        self.encoder, self.reranker = encoder, reranker
        self.fingerprint, self.dim = encoder.fingerprint, encoder.dim
        self.vectors: dict[str, np.ndarray] = {}
        self.odds: dict[tuple[str, str], float] = {}

    def encode(self, items: Sequence[Item], *, progress: str = "") -> np.ndarray:
        missing = {item.key: item for item in items if item.key not in self.vectors}
        if missing:
            self.vectors.update(zip(missing, self.encoder.encode(list(missing.values()), progress=progress), strict=True))
        return np.stack([self.vectors[item.key] for item in items])

    def score_pairs(self, pairs: Sequence[Pair], *, progress: str = "") -> np.ndarray:
        keys = [(query.key, item.key) for query, item in pairs]
        missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self.odds}
        if missing:
            scores = self.reranker.score_pairs(list(missing.values()), progress=progress)
            self.odds.update(zip(missing, scores.tolist(), strict=True))
        return np.array([self.odds[key] for key in keys], dtype=np.float32)


def learn_weight(
    encoder: Encoder, reranker: Scorer, benchmark: Benchmark, *, depth: int, weights: Sequence[float] = WEIGHTS
) -> Learned:
    """The weight with the best mean P@1 on a validation benchmark; the smallest of equals.

    Args:
        encoder: ranks first.
        reranker: its log-odds are added to the cosine.
        benchmark: held out from training and from test.
        depth: candidates per query that the reranker reads.
        weights: to try; 0 among them means that the reranker may be found to be of no use.
    """
    memory = _Remembered(encoder, reranker)
    tried = []
    for weight in sorted(weights):
        report = evaluate(memory, benchmark, rerank=Fused(memory, depth, weight), progress=not tried)
        tried.append((weight, report.mean().mean))
    best = max(tried, key=lambda pair: (round(pair[1], 9), -pair[0]))[0]
    return Learned(replace(Fused(reranker, depth), weight=best), tuple(tried))
