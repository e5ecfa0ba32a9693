"""Intervals over seeds and queries: whoever trains once more gets another model, and whoever asks once more other questions."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int

Hits = Mapping[str, Float[np.ndarray, "s q"]]  # by task: a row for each seed, a column for each query


@dataclass(frozen=True)
class Spread:
    """A mean, its interval, and how often a resample fell on the other side of zero.

    Attributes:
        mean: over seeds, queries and tasks as they are.
        low: lower end.
        high: upper end.
        p: two-sided, from the resamples: twice the smaller share of those at or beyond zero, at least 1 / draws.
        seeds: the mean of each seed.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: tuple[float, ...]

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def difference(one: Hits, other: Hits) -> dict[str, Float[np.ndarray, "s q"]]:
    """One less the other, seed by seed and query by query. Raises ValueError unless tasks and shapes are the same."""
    shapes = [{name: values.shape for name, values in hits.items()} for hits in (one, other)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"these are not the same seeds and queries: {shapes[0]} and {shapes[1]}")
    return {name: one[name] - other[name] for name in one}


def spread(values: Hits, *, draws: int = 2000, level: float = 0.95, seed: int = 0) -> Spread:
    """Hierarchical bootstrap of the plain mean over tasks.

    Each resample draws seeds with replacement and, within every task, queries with replacement; the same queries for all drawn
    seeds, since a query that is hard is hard for each of them. Tasks are fixed. With three seeds, the variance of a resampled
    mean of seeds is two thirds of what it should be (a sample's variance with its own mean, n - 1 of n): the seeds' part is
    widened by sqrt(n / (n - 1)), so that few seeds do not make an interval narrow. One seed says nothing about seeds; then the
    interval is over queries alone.

    Args:
        values: of each task, or differences of two models on the same seeds and queries.
        draws: resamples.
        level: share of them inside.
        seed: of the draws.

    Raises:
        ValueError: no tasks, no values, or tasks with different numbers of seeds.
    """
    tasks = [np.asarray(values[name], dtype=np.float64) for name in sorted(values)]
    counts = {len(task) for task in tasks}
    if len(counts) != 1 or any(task.size == 0 for task in tasks):
        raise ValueError(f"every task needs values for the same seeds, got {[task.shape for task in tasks]}")
    (count,) = counts
    chosen, drawn = _resamples(seed, draws, count, tuple(task.shape[1] for task in tasks))
    made = np.zeros(draws)
    for task, asked in zip(tasks, drawn, strict=True):
        made += np.einsum("ds,sd->d", chosen, task @ (asked.T / task.shape[1]))
    made /= len(tasks)
    by_seed = np.mean([task.mean(axis=1) for task in tasks], axis=0)
    low, high = np.quantile(made, [(1 - level) / 2, (1 + level) / 2])
    beyond = min((made <= 0).mean(), (made >= 0).mean())
    return Spread(float(by_seed.mean()), float(low), float(high), float(max(2 * beyond, 1 / draws)), tuple(by_seed.tolist()))


@cache
def _resamples(
    seed: int, draws: int, seeds: int, queries: tuple[int, ...]
) -> tuple[Float[np.ndarray, "d s"], list[Int[np.ndarray, "d _"]]]:
    """Weights of the seeds, and how often each query of each task was drawn: the same for every pair of rows."""
    rng = np.random.default_rng(seed)
    return weights_of(rng, seeds, draws), [_counts(rng, n, draws) for n in queries]


def weights_of(rng: np.random.Generator, seeds: int, draws: int) -> Float[np.ndarray, "d s"]:
    """Weights of the seeds in each resample, 1 in sum; drawn with replacement and widened, see `spread`."""
    even = np.full((draws, seeds), 1 / seeds)
    if seeds == 1:
        return even
    drawn = _counts(rng, seeds, draws) / seeds
    return even + (drawn - even) * (seeds / (seeds - 1)) ** 0.5


def _counts(rng: np.random.Generator, n: int, draws: int) -> Int[np.ndarray, "d n"]:
    """How often each of n was drawn, n times with replacement."""
    return rng.multinomial(n, np.full(n, 1 / n), size=draws)


def macro(values: Hits) -> float:
    """Mean over tasks of the mean over seeds and queries."""
    return float(np.mean([np.mean(task) for task in values.values()]))
