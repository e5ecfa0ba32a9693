"""Metrics of ranking and their uncertainty: pure functions of tensors on the CPU, float64 inside.

Letters: q queries, c candidates, n values. Every metric is the expected value when candidates with equal scores are put
in random order: a model that gives every candidate the same score gets exactly what guessing gets, wherever the gold
candidate happens to stand. The worst order is there as well (`Ranking.strict_hit`, `Ranking.worst_rank`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Gains = Literal["linear", "exponential"]
_CELLS = 4_000_000  # random numbers held at a time while resampling (32 MB)


@dataclass(frozen=True)
class Ranking:
    """Where the best gold candidate of each query stands.

    Attributes:
        above: how many candidates score higher than it.
        gold_tied: gold candidates at its score, itself included.
        others_tied: candidates at its score that are not gold.
        golds: gold candidates in all.
        offered: candidates in all.
    """

    above: Int[Tensor, " q"]
    gold_tied: Int[Tensor, " q"]
    others_tied: Int[Tensor, " q"]
    golds: Int[Tensor, " q"]
    offered: Int[Tensor, " q"]

    def hit(self, k: int = 1) -> Float[Tensor, " q"]:
        """Chance that some gold candidate is among the first k, over the random order of ties."""
        _check_k(k)
        tied = self.gold_tied + self.others_tied
        places = (k - self.above).clamp(min=0)
        total = torch.zeros(self.above.shape, dtype=torch.float64)
        for place, chance in self._first(int(places.clamp(max=tied).max()) if len(places) else 0):
            total += torch.where(place <= places, chance, 0)
        return torch.where(places > self.others_tied, 1, total)  # no room left for a miss: no rounding either

    def strict_hit(self) -> Float[Tensor, " q"]:
        """1 where a gold candidate is first in the worst order of ties, else 0."""
        return ((self.above == 0) & (self.others_tied == 0)).double()

    def rank(self) -> Float[Tensor, " q"]:
        """Expected rank of the best gold candidate; 1 is first."""
        tied = self.gold_tied + self.others_tied
        return self.above + (tied + 1).double() / (self.gold_tied + 1)

    def worst_rank(self) -> Int[Tensor, " q"]:
        """Rank of the best gold candidate in the worst order of ties; 1 is first."""
        return self.above + self.others_tied + 1

    def reciprocal_rank(self) -> Float[Tensor, " q"]:
        """Expected 1 / rank of the best gold candidate; its mean over queries is the MRR."""
        total = torch.zeros(self.above.shape, dtype=torch.float64)
        for place, chance in self._first(int(self.others_tied.max()) + 1 if len(self.above) else 0):
            total += chance / (self.above + place)
        return total

    def chance(self) -> Float[Tensor, " q"]:
        """Hit at rank 1 that guessing gets: gold candidates / candidates."""
        return self.golds.double() / self.offered

    def _first(self, places: int) -> Iterator[tuple[int, Float[Tensor, " q"]]]:
        """(place within the tied group, chance that the first gold candidate of the group stands there), from place 1."""
        left = self.gold_tied + self.others_tied
        missed = torch.ones(left.shape, dtype=torch.float64)
        for place in range(1, places + 1):
            here = (self.gold_tied / left.clamp(min=1).double()).clamp(max=1)
            yield place, missed * here
            missed = missed * (1 - here)
            left = left - 1


def rank(scores: Float[Tensor, "q c"], gold: Bool[Tensor, "q c"], valid: Bool[Tensor, "q c"]) -> Ranking:
    """Find the best gold candidate of each query among the candidates offered to it.

    Args:
        scores: higher is more relevant; whatever stands where `valid` is False is ignored.
        gold: belongs to the query.
        valid: offered to the query.

    Raises:
        ValueError: scores that are not finite, a query without gold, gold that is not offered; names the rows.
    """
    _check(scores, gold, valid)
    scores = scores.double()
    best = scores.masked_fill(~gold, -torch.inf).amax(dim=1, keepdim=True)
    tied = valid & (scores == best)
    return Ranking(
        above=(valid & (scores > best)).sum(dim=1),
        gold_tied=(tied & gold).sum(dim=1),
        others_tied=(tied & ~gold).sum(dim=1),
        golds=gold.sum(dim=1),
        offered=valid.sum(dim=1),
    )


def recall(scores: Float[Tensor, "q c"], gold: Bool[Tensor, "q c"], valid: Bool[Tensor, "q c"], k: int) -> Float[Tensor, " q"]:
    """Expected share of the gold candidates that are among the first k. Arguments and errors as `rank`."""
    _check(scores, gold, valid)
    _check_k(k)
    above, tied = _spans(scores, valid)
    found = (k - above).clamp(min=0).minimum(tied) / tied.double()
    return torch.where(gold, found, 0).sum(dim=1) / gold.sum(dim=1)


def ndcg(
    scores: Float[Tensor, "q c"],
    relevance: Float[Tensor, "q c"],
    valid: Bool[Tensor, "q c"],
    k: int,
    *,
    gains: Gains = "linear",
) -> Float[Tensor, " q"]:
    """Expected nDCG of the first k: gain / log2(1 + rank), summed, over what the best order gives.

    Järvelin and Kekäläinen 2002, with every candidate of a tied group given the mean discount of the group's ranks.

    Args:
        scores: as in `rank`.
        relevance: grade of each candidate, 0 or more; 0 is not relevant.
        valid: as in `rank`.
        k: how many ranks count.
        gains: "linear": the grade itself; "exponential": 2^grade - 1.

    Raises:
        ValueError: as `rank`, a query without a relevant candidate counting as one without gold; negative or non-finite grades.
    """
    if gains not in ("linear", "exponential"):
        raise ValueError(f"gains must be 'linear' or 'exponential', got {gains!r}")
    graded = (torch.isfinite(relevance) & (relevance >= 0)).all(dim=1)
    if not bool(graded.all()):
        raise ValueError(f"relevance must be finite and not negative; it is not for queries {_rows(~graded)}")
    _check(scores, relevance > 0, valid)
    _check_k(k)
    grades = relevance.double()
    gain = grades if gains == "linear" else torch.exp2(grades) - 1
    width = scores.shape[1]
    discount = 1 / torch.log2(torch.arange(2, width + 2, dtype=torch.float64))
    summed = torch.cat([torch.zeros(1, dtype=torch.float64), discount.cumsum(0)])  # of the first 0, 1, 2 ... ranks
    above, tied = _spans(scores, valid)
    share = (summed[(above + tied).clamp(max=k)] - summed[above.clamp(max=k)]) / tied
    ideal = (gain.sort(dim=1, descending=True).values * discount)[:, :k].sum(dim=1)
    return torch.where(valid, gain * share, 0).sum(dim=1) / ideal


@dataclass(frozen=True)
class GoldRanks:
    """Where every gold candidate of each query stands when each tie is broken against the model.

    Attributes:
        grades: of the gold candidates, best placed first; 0 where a query has fewer than others.
        ranks: their ranks; 1 is first.
    """

    grades: Float[Tensor, "q g"]
    ranks: Float[Tensor, "q g"]

    @classmethod
    def joined(cls, blocks: Sequence["GoldRanks"]) -> "GoldRanks":
        """Those of all queries of several blocks."""
        most = max(block.grades.shape[1] for block in blocks)
        columns = [[torch.nn.functional.pad(t, (0, most - t.shape[1])) for t in (b.grades, b.ranks)] for b in blocks]
        grades, ranks = zip(*columns, strict=True)
        return cls(torch.cat(grades), torch.cat(ranks))

    def at(self, cutoffs: Sequence[int] = (1, 5, 10)) -> dict[str, Float[Tensor, " q"]]:
        """What leaderboards ask for, per query, for the first k: "hit@k", "precision@k", "ndcg_linear@k" ...

        hit, precision, recall, f1, map (average precision, over as many as could be found), mrr, and nDCG with linear and
        exponential gains.
        """
        own = self.grades > 0
        counts, order = own.sum(dim=1), torch.arange(1, own.shape[1] + 1)
        ranks = self.ranks.clamp(min=1)
        made: dict[str, Tensor] = {}
        for k in cutoffs:
            _check_k(k)
            inside = own & (ranks <= k)
            found = inside.sum(dim=1).double()
            precision, recalled = found / k, found / counts
            made[f"hit@{k}"] = (found > 0).double()
            made[f"precision@{k}"], made[f"recall@{k}"] = precision, recalled
            made[f"f1@{k}"] = torch.where(found > 0, 2 * precision * recalled / (precision + recalled), 0)
            made[f"map@{k}"] = torch.where(inside, order / ranks, 0).sum(dim=1) / counts.clamp(max=k)
            made[f"mrr@{k}"] = torch.where(inside, 1 / ranks, 0)[:, 0]
            for name, gain in (("linear", self.grades), ("exponential", torch.exp2(self.grades) - 1)):
                best = gain.sort(dim=1, descending=True).values[:, :k]
                ideal = (best / torch.log2(1 + order[: best.shape[1]].double())).sum(dim=1)
                made[f"ndcg_{name}@{k}"] = torch.where(inside, gain / torch.log2(1 + ranks), 0).sum(dim=1) / ideal
        return made


def worst_ranks(scores: Float[Tensor, "q c"], relevance: Float[Tensor, "q c"], valid: Bool[Tensor, "q c"]) -> GoldRanks:
    """Rank every gold candidate, those that are not gold before it where scores are equal. Arguments and errors as `ndcg`."""
    gold = relevance > 0
    _check(scores, gold, valid)
    scores, relevance = scores.double(), relevance.double()
    most = int(gold.sum(dim=1).max()) if len(scores) else 1
    # Two stable sorts of the few gold ones: by score, and where scores are equal the lowest grade first.
    columns = gold.double().topk(most, dim=1).indices
    own, level, grade = gold.gather(1, columns), scores.gather(1, columns), relevance.gather(1, columns)
    level = level.masked_fill(~own, -torch.inf)
    order = grade.masked_fill(~own, torch.inf).argsort(dim=1, stable=True)
    order = order.gather(1, level.gather(1, order).argsort(dim=1, descending=True, stable=True))
    own, level, grade = own.gather(1, order), level.gather(1, order), grade.gather(1, order)
    others = scores.masked_fill(gold | ~valid, -torch.inf)
    before = torch.stack([(others >= level[:, g : g + 1]).sum(dim=1) for g in range(most)], dim=1)
    return GoldRanks(torch.where(own, grade, 0), before + torch.arange(1, most + 1).double())


def _spans(scores: Float[Tensor, "q c"], valid: Bool[Tensor, "q c"]) -> tuple[Int[Tensor, "q c"], Int[Tensor, "q c"]]:
    """For each candidate, how many score higher and how many have its score (itself included); meaningless if not valid."""
    masked = scores.double().masked_fill(~valid, -torch.inf)
    ascending = masked.sort(dim=1).values
    up_to = torch.searchsorted(ascending, masked, right=True)
    return masked.shape[1] - up_to, up_to - torch.searchsorted(ascending, masked)


def _check(scores: Float[Tensor, "q c"], gold: Bool[Tensor, "q c"], valid: Bool[Tensor, "q c"]) -> None:
    broken = (valid & ~torch.isfinite(scores)).any(dim=1)
    if bool(broken.any()):
        raise ValueError(f"scores are not finite for queries {_rows(broken)}")
    without = ~gold.any(dim=1)
    if bool(without.any()):
        raise ValueError(f"no gold candidate for queries {_rows(without)}")
    outside = (gold & ~valid).any(dim=1)
    if bool(outside.any()):
        raise ValueError(f"gold that is not among the candidates offered to queries {_rows(outside)}")


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")


def _rows(mask: Bool[Tensor, " q"]) -> str:
    rows = torch.nonzero(mask).flatten().tolist()
    return ", ".join(map(str, rows[:8])) + (" ..." if len(rows) > 8 else "")


@dataclass(frozen=True)
class Interval:
    """A mean and where it could lie had other queries been drawn.

    Attributes:
        mean: of the values as they are.
        low: lower end of the bootstrap interval.
        high: upper end.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """How far two models differ on the same queries.

    Attributes:
        difference: mean of the first minus mean of the second.
        p: two-sided; chance of a difference this large if it did not matter which model answered which query.
    """

    difference: Interval
    p: float


def interval(values: Float[Tensor, "_"], *, draws: int = 2000, level: float = 0.95, seed: int) -> Interval:
    """Bootstrap percentile interval of a mean: as `macro_interval` of one task."""
    return macro_interval([values], draws=draws, level=level, seed=seed)


def macro_interval(tasks: Sequence[Float[Tensor, "_"]], *, draws: int = 2000, level: float = 0.95, seed: int) -> Interval:
    """Bootstrap percentile interval of the plain mean over tasks of task means.

    Queries are resampled within each task; the tasks themselves are fixed, so the interval says how much depends on the
    choice of queries, not of tasks. The order of the tasks plays no part in the mean, and in the ends only as far as
    another seed would. Where all values are equal (no hit at all, say) the interval has no width: resampling cannot show
    what was never seen.

    Args:
        tasks: values per query, for each task.
        draws: how many resamples.
        level: share of the resamples that lie inside.
        seed: of the resampling.

    Raises:
        ValueError: no task, a task without values, values that are not finite, draws < 1, level outside (0, 1).
    """
    columns = _columns(tasks, draws, level)
    return _interval(columns, draws, level, torch.Generator().manual_seed(seed))


def paired(
    a_tasks: Sequence[Float[Tensor, "_"]],
    b_tasks: Sequence[Float[Tensor, "_"]],
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int,
) -> Paired:
    """Interval of the difference of two macro means (a - b), and a permutation p value.

    Both models are resampled with the same queries. For p the sign of every query's difference is flipped at random, as
    if the two models had been swapped for that query.

    Args:
        a_tasks: values per query of the first model, for each task.
        b_tasks: values of the second model for the same queries in the same order.
        draws: how many resamples, and how many flips; p cannot be below 1 / (draws + 1).
        level: share of the resamples that lie inside.
        seed: of both.

    Raises:
        ValueError: as `macro_interval`; tasks or queries that do not match.
    """
    sizes = [[len(values) for values in tasks] for tasks in (a_tasks, b_tasks)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the two models were not asked the same queries: {sizes[0]} and {sizes[1]} per task")
    firsts, seconds = _columns(a_tasks, draws, level), _columns(b_tasks, draws, level)
    columns = [first - second for first, second in zip(firsts, seconds, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    difference = _interval(columns, draws, level, generator)
    flipped = sum((_flipped(column, draws, generator) for column in columns), torch.zeros(draws, dtype=torch.float64))
    # A hair below the difference itself: flips that give the same sum in another order of adding are as extreme.
    extreme = (flipped / len(columns)).abs() >= abs(difference.mean) - 1e-12
    return Paired(difference, (1 + int(extreme.sum())) / (1 + draws))


def _columns(tasks: Sequence[Float[Tensor, "_"]], draws: int, level: float) -> list[Float[Tensor, "_"]]:
    if draws < 1:
        raise ValueError(f"draws must be 1 or more, got {draws}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if not tasks or any(len(values) == 0 for values in tasks):
        raise ValueError("there is no mean of nothing: every task needs at least one value, and there must be a task")
    if not all(bool(torch.isfinite(values).all()) for values in tasks):
        raise ValueError("values are not finite")
    return [values.double() for values in tasks]


def _interval(columns: Sequence[Float[Tensor, "_"]], draws: int, level: float, generator: torch.Generator) -> Interval:
    means = torch.zeros(draws, dtype=torch.float64)
    for column in columns:
        means += _resampled(column, draws, generator)
    ends = torch.quantile(means / len(columns), torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
    mean = float(torch.stack([column.mean() for column in columns]).mean())
    return Interval(mean, float(ends[0]), float(ends[1]))


def _resampled(values: Float[Tensor, " n"], draws: int, generator: torch.Generator) -> Float[Tensor, " draws"]:
    """Mean of each resample, drawn with replacement."""
    n = len(values)
    return _in_blocks(n, draws, lambda block: values[torch.randint(n, (block, n), generator=generator)].mean(dim=1))


def _flipped(values: Float[Tensor, " n"], draws: int, generator: torch.Generator) -> Float[Tensor, " draws"]:
    """Mean after flipping signs at random; zeros have no sign, so they are not drawn for."""
    moved = values[values != 0]
    m = len(moved)
    if m == 0:
        return torch.zeros(draws, dtype=torch.float64)
    total = moved.sum()

    def flip(block: int) -> Tensor:
        return 2 * (torch.randint(2, (block, m), generator=generator).double() @ moved) - total

    return _in_blocks(m, draws, flip) / len(values)


def _in_blocks(n: int, draws: int, make: Callable[[int], Tensor]) -> Float[Tensor, " draws"]:
    """`make(block)` for blocks that add up to `draws`, of about `_CELLS` numbers each."""
    size = max(1, _CELLS // n)
    return torch.cat([make(min(size, draws - done)) for done in range(0, draws, size)])
