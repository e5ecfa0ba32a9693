"""`Targets` and `Loss`: the whole interface between data and objectives.

Letters: q queries, c candidates. A loss sees scores and four matrices; no models, tokens, ranks or files.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
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
        return Weighted((*_parts(self), *_parts(other)))

    def __rmul__(self, factor: float) -> "Weighted":
        """An objective times a number."""
        return Weighted(tuple((factor * weight, loss) for weight, loss in _parts(self)))

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


def _parts(loss: Composable) -> tuple[tuple[float, Loss], ...]:
    if isinstance(loss, Weighted):
        return loss.parts
    assert isinstance(loss, Loss)
    return ((1.0, loss),)


def check(scores: Float[Tensor, "q c"], targets: Targets) -> None:
    """Refuse what would end in a loss that is not a number.

    Raises:
        ValueError: scores that are not finite, or a query without gold; names the rows.
    """
    finite = torch.isfinite(scores).all(dim=1)
    if not bool(finite.all()):
        raise ValueError(f"scores are not finite for rows {_rows(~finite)}")
    without = ~targets.gold.any(dim=1)
    if bool(without.any()):
        raise ValueError(f"no gold candidate for rows {_rows(without)}")
    hidden = (targets.gold & ~targets.comparable).any(dim=1)
    if bool(hidden.any()):
        raise ValueError(f"gold marked as not comparable for rows {_rows(hidden)}")


def _rows(mask: Bool[Tensor, " q"]) -> str:
    rows = torch.nonzero(mask).flatten().tolist()
    return ", ".join(map(str, rows[:8])) + (" ..." if len(rows) > 8 else "")


def positive(name: str, value: float) -> None:
    """Raise ValueError unless `value` > 0."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")


def exact(scores: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Scores in float32 at least: logits in bfloat16 would cost 4 to 6 % of gradient error."""
    return scores if scores.dtype == torch.float64 else scores.float()
