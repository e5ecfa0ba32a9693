"""`Targets` and `Loss`: the whole interface between data and objectives.

Letters: q queries, c candidates, n pairs. A loss sees scores and four matrices; no models, tokens, ranks or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """All that a loss may know besides the scores.

    Attributes:
        gold: known to belong to the query.
        judged: a judge has graded this candidate for this query.
        relevance: the judge's grade in [0, 1]; meaningless where not judged.
        comparable: may be compared with the query's gold. False for likely false negatives, for other copies of the
            positive, and for padding. Gold is always comparable.
    """

    gold: Bool[Tensor, "q c"]
    judged: Bool[Tensor, "q c"]
    relevance: Float[Tensor, "q c"]
    comparable: Bool[Tensor, "q c"]

    @classmethod
    def of_gold(cls, gold: Bool[Tensor, "q c"]) -> "Targets":
        """Targets when nothing but gold is known and every candidate may be compared."""
        return cls(gold, torch.zeros_like(gold), torch.zeros(gold.shape, device=gold.device), torch.ones_like(gold))

    def __getitem__(self, rows: slice) -> "Targets":
        """The targets of some queries."""
        return Targets(self.gold[rows], self.judged[rows], self.relevance[rows], self.comparable[rows])

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.gold)

    def to(self, device: torch.device) -> "Targets":
        """The same on a device."""
        return Targets(*(m.to(device) for m in (self.gold, self.judged, self.relevance, self.comparable)))


@dataclass(frozen=True)
class KnownPairs:
    """Targets of a batch too large for matrices: the pairs that something is known of; every other pair may be compared.

    A slice of it is an ordinary `Targets` of those queries, so no more rows exist at once than are asked for.

    Attributes:
        shape: (queries, candidates).
        rows: query of each pair, ascending.
        columns: candidate of each pair.
        gold: see `Targets`, as are the others.
        judged: see there.
        relevance: see there.
        comparable: see there.
    """

    shape: tuple[int, int]
    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]
    gold: Bool[Tensor, " n"]
    judged: Bool[Tensor, " n"]
    relevance: Float[Tensor, " n"]
    comparable: Bool[Tensor, " n"]

    @classmethod
    def diagonal(cls, q: int, c: int, device: torch.device | str = "cpu") -> "KnownPairs":
        """Query i belongs to candidate i; nothing else is known."""
        index, yes = torch.arange(q, device=device), torch.ones(q, dtype=torch.bool, device=device)
        return cls((q, c), index, index, yes, ~yes, torch.zeros(q, device=device), yes)

    def __len__(self) -> int:
        """Number of queries."""
        return self.shape[0]

    def to(self, device: torch.device) -> "KnownPairs":
        """The same on a device."""
        return KnownPairs(self.shape, *(part.to(device) for part in self._parts()))

    def some(self, rows: slice) -> "KnownPairs":
        """The known pairs of some queries."""
        start, stop, _ = rows.indices(self.shape[0])
        ends = torch.tensor([start, stop], device=self.rows.device)
        first, last = torch.searchsorted(self.rows.contiguous(), ends).tolist()
        row, *rest = (part[first:last] for part in self._parts())
        return KnownPairs((stop - start, self.shape[1]), row - start, *rest)

    def _parts(self) -> tuple[Tensor, ...]:
        return self.rows, self.columns, self.gold, self.judged, self.relevance, self.comparable

    def __getitem__(self, rows: slice) -> Targets:
        """The targets of some queries, as matrices."""
        here = self.some(rows)
        shape, device, places = here.shape, self.rows.device, (here.rows, here.columns)

        def matrix(values: Bool[Tensor, " n"], rest: bool) -> Bool[Tensor, "q c"]:
            made = torch.full((1, 1), rest, device=device).expand(shape)  # no memory where nothing is known
            return made if bool((values == rest).all()) else made.contiguous().index_put_(places, values)

        relevance = torch.zeros(1, 1, dtype=here.relevance.dtype, device=device).expand(shape)
        if bool(here.judged.any()):
            relevance = relevance.contiguous().index_put_(places, here.relevance)
        return Targets(matrix(here.gold, False), matrix(here.judged, False), relevance, matrix(here.comparable, True))


@runtime_checkable
class Loss(Protocol):
    """An objective. Averages per query first, so that ranks with different numbers of candidates agree."""

    def __call__(self, scores: Float[Tensor, "q c"], targets: Targets) -> Float[Tensor, ""]:
        """The loss, a scalar with a graph to `scores`."""
        ...


class Composable:
    """Gives losses `+` and `*`: `JudgeAlignment(0.02) + 0.5 * InfoNCE(0.02)`."""

    def __add__(self, other: "Composable") -> "Weighted":
        """The sum of two objectives."""
        return Weighted((*parts_of(self), *parts_of(other)))

    def __rmul__(self, factor: float) -> "Weighted":
        """An objective times a number."""
        return Weighted(tuple((factor * weight, loss) for weight, loss in parts_of(self)))

    __mul__ = __rmul__


@dataclass(frozen=True)
class Weighted(Composable):
    """A weighted sum of losses; made by `+` and `*`.

    Attributes:
        parts: (weight, loss) each.
    """

    parts: tuple[tuple[float, Loss], ...]

    def __call__(self, scores: Float[Tensor, "q c"], targets: Targets) -> Float[Tensor, ""]:
        """The weighted sum."""
        total = scores.new_zeros(())
        for weight, loss in self.parts:
            total = total + weight * loss(scores, targets)
        return total


def parts_of(loss: "Composable | Loss") -> tuple[tuple[float, Loss], ...]:
    """(weight, loss) of every part of a sum; a single loss is a sum of one."""
    if isinstance(loss, Weighted):
        return loss.parts
    assert isinstance(loss, Loss)
    return ((1.0, loss),)


class UnusableRows(ValueError):
    """Rows of which no loss can be computed.

    Attributes:
        what: what is wrong with them.
        rows: their numbers in the batch; whoever knows the queries names them.
    """

    def __init__(self, what: str, rows: Sequence[int]):
        self.what, self.rows = what, tuple(rows)
        shown = ", ".join(map(str, self.rows[:8])) + (" ..." if len(self.rows) > 8 else "")
        super().__init__(f"{what} for rows {shown}")


def check(scores: Float[Tensor, "q c"], targets: Targets | KnownPairs, first: int = 0, *, finite: bool = False) -> None:
    """Refuse what would end in a loss that is not a number.

    Args:
        scores: of some queries.
        targets: of the same queries.
        first: number of the first row.
        finite: the scores are known to be finite.

    Raises:
        UnusableRows: scores that are not finite, a query without gold, gold that may not be compared.
    """
    if not finite:
        _refuse("scores are not finite", ~torch.isfinite(scores).all(dim=1), first)
    if isinstance(targets, Targets):
        owned, wrong = targets.gold.any(dim=1), (targets.gold & ~targets.comparable).any(dim=1)
    else:
        q = len(targets)
        owned = torch.bincount(targets.rows[targets.gold], minlength=q) > 0
        wrong = torch.bincount(targets.rows[targets.gold & ~targets.comparable], minlength=q) > 0
    _refuse("no gold candidate", ~owned, first)
    _refuse("gold marked as not comparable", wrong, first)


def check_contrast(targets: Targets) -> None:
    """Refuse a batch in which no query has anything to be compared with: nothing could be learned from it.

    Single queries of that kind are fine; they add nothing.

    Raises:
        UnusableRows: with every row.
    """
    if not bool((targets.comparable & ~targets.gold).any()):
        raise NothingToCompare(range(len(targets.gold)))


class NothingToCompare(UnusableRows):
    """No query of a batch has a candidate besides its gold that it may be compared with."""

    def __init__(self, rows: Sequence[int]):
        super().__init__("nothing to compare the gold with (every other candidate is masked)", rows)


def _refuse(what: str, bad: Bool[Tensor, " q"], first: int) -> None:
    if bool(bad.any()):
        raise UnusableRows(what, [first + row for row in torch.nonzero(bad).flatten().tolist()])


def positive(name: str, value: float) -> None:
    """Raise ValueError unless `value` > 0."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")


def exact(scores: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Scores in float32 at least: logits in bfloat16 would cost 4 to 6 % of gradient error."""
    return scores if scores.dtype == torch.float64 else scores.float()
