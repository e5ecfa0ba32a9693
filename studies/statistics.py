"""Intervals over seeds and queries: whoever trains once more gets another model, and whoever asks once more other questions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtrit

Hits = Mapping[str, Float[np.ndarray, "s q"]]  # by task: a row for each seed, a column for each query


@dataclass(frozen=True)
class Spread:
    """A mean, its interval, and how much of the doubt has to be left aside before it leaves zero out.

    Attributes:
        mean: over seeds, queries and tasks as they are.
        low: lower end.
        high: upper end.
        p: two-sided: one less the level of the widest interval that leaves zero out; at least 1 / draws.
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
    """The plain mean over tasks with an interval over queries and seeds.

    Queries: bootstrap; each resample draws queries with replacement within every task, the same ones for all seeds, since
    a query that is hard is hard for each of them. Seeds: two or three of them have no distribution to draw from (a bootstrap
    over two seeds covers the truth in 61 of 100 cases when it claims 95), so their part is Student's t of the means of the
    seeds, with one degree of freedom less than there are seeds. Both parts, being independent, are added as squares. Tasks
    are fixed. One seed says nothing about seeds; then the interval is over queries alone.

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
    by_seed = np.mean([task.mean(axis=1) for task in tasks], axis=0)
    made = np.zeros(draws)
    for task, asked in zip(tasks, _resamples(seed, draws, tuple(task.shape[1] for task in tasks)), strict=True):
        made += asked @ task.mean(axis=0) / task.shape[1]
    made = np.sort(made / len(tasks))

    def ends(level: float) -> tuple[float, float]:
        return _ends(made, by_seed, level)

    low, high = ends(level)
    return Spread(float(by_seed.mean()), low, high, _p(ends, 1 / draws), tuple(by_seed.tolist()))


def _ends(made: Float[np.ndarray, " d"], by_seed: Float[np.ndarray, " s"], level: float) -> tuple[float, float]:
    """Both ends of an interval, from resampled means (sorted) and the means of the seeds."""
    mean, count, apart = float(by_seed.mean()), len(by_seed), 0.0
    if count > 1:
        apart = float(stdtrit(count - 1, (1 + level) / 2)) * float(by_seed.std(ddof=1)) / count**0.5
    low, high = np.quantile(made, [(1 - level) / 2, (1 + level) / 2])
    # Either end is at least as far out as it is by the seeds alone.
    return mean - float(np.hypot(max(mean - low, 0.0), apart)), mean + float(np.hypot(max(high - mean, 0.0), apart))


def _p(ends: Callable[[float], tuple[float, float]], least: float) -> float:
    """One less the level of the widest interval that leaves zero out; between `least` and 1."""

    def clear(p: float) -> bool:
        low, high = ends(1 - p)
        return low > 0 or high < 0

    if clear(least):
        return least
    low, high = least, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if clear(middle) else (middle, high)
    return high


@cache
def _resamples(seed: int, draws: int, queries: tuple[int, ...]) -> list[Int[np.ndarray, "d _"]]:
    """How often each query of each task was drawn, with replacement: the same for every pair of rows."""
    rng = np.random.default_rng(seed)
    return [rng.multinomial(n, np.full(n, 1 / n), size=draws) for n in queries]
