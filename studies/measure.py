"""What is measured of a trained model: a hit or miss for every query, and how far positives stand above near misses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from hardwon.distributed import World
from hardwon.evaluation import Benchmark
from hardwon.evaluation.ranking import Ready, ranked
from hardwon.evaluation.run import prepared
from hardwon.models import Encoder
from hardwon.search import Fused

NEAR = 5  # negatives of the gap, as in LLaVE's figure


@dataclass(frozen=True)
class Measured:
    """Of one model on one benchmark.

    Attributes:
        hits: P@1 of every query of each task; ties count as what guessing among them gets.
        gap: for each task, mean over queries of the positive's cosine less the mean of the nearest five negatives'.
        pairs: that a reranker read.
    """

    hits: Mapping[str, tuple[float, ...]]
    gap: Mapping[str, float]
    pairs: int = 0

    @property
    def mean(self) -> float:
        """Mean over tasks."""
        return float(np.mean([np.mean(values) for values in self.hits.values()]))


def measure(encoder: Encoder, benchmark: Benchmark, rerank: Fused | None = None) -> Measured:
    """Encode everything once, rank every task."""
    hits, gaps, pairs = {}, {}, 0
    for ready in prepared(encoder, benchmark):
        result, read = ranked(ready, rerank, False, World())
        hits[result.name], gaps[result.name] = result.hits, gap(ready)
        pairs += read.pairs if read is not None else 0
    return Measured(hits, gaps, pairs)


def gap(ready: Ready, near: int = NEAR) -> float:
    """Mean over queries of: mean cosine of gold, less mean cosine of the `near` nearest others that the query searches."""
    task, values = ready.task, []
    scores = ready.queries.astype(np.float64) @ ready.corpus.astype(np.float64).T
    for row, gold in enumerate(task.gold):
        right = set(ready.shown[list(gold)].tolist())
        offered = np.array(task.searched(row))
        others = offered[~np.isin(ready.shown[offered], list(right))]
        nearest = np.sort(scores[row, others])[-near:]
        values.append(scores[row, list(gold)].mean() - nearest.mean())
    return float(np.mean(values))


def packed(hits: Mapping[str, Sequence[float]]) -> dict[str, str | list[float]]:
    """Hits for a JSON file: a string of 0 and 1 where there are no others."""
    made: dict[str, str | list[float]] = {}
    for name, values in hits.items():
        plain = all(value in (0, 1) for value in values)
        made[name] = "".join(str(int(v)) for v in values) if plain else [round(v, 4) for v in values]
    return made


def unpacked(rows: Mapping[str, str | Sequence[float]]) -> dict[str, Float[np.ndarray, " q"]]:
    """What `packed` made, as numbers."""
    return {name: np.array([float(value) for value in values]) for name, values in rows.items()}
