"""What the contrastive objectives share: the softmax over a query's negatives, and gradients in closed form.

Every contrastive objective here has the gradient (Pbar - Target) / temperature on a query's scores, and is written as that
instead of as a graph: it is shorter, exact where the loss is almost zero, and needs no memory beside the scores.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from hardwon.losses.targets import KnownPairs, Targets, check, check_contrast, exact

Known = Targets | KnownPairs
# To the base 2, since torch's exp2 takes 0.37 x the time of its exp (AVX-512; `x.exp2()` against `x.exp()` by
# `python -m timeit -s "import torch; x = torch.randn(4096, 256)"`).
LOG2_E = 1 / math.log(2)


# Scores that are worked on at once on a CPU: fewer, and starting each operation costs more than the cache gains (measured).
PIECE = 1 << 19


def pieces(scores: Float[Tensor, "q c"]) -> Iterator[slice]:
    """Rows that fit the processor's cache: what happens to each score happens there."""
    rows = max(PIECE // max(scores.shape[1], 1), 1) if scores.device.type == "cpu" else max(len(scores), 1)
    for start in range(0, len(scores), rows):
        yield slice(start, min(start + rows, len(scores)))


class Negatives(NamedTuple):
    """The softmax over negatives, not yet divided by its sum.

    Attributes:
        terms: exp(logit - largest of the row); 0 for gold and what may not be compared.
        mass: sum of each row's terms; 0 where there are none.
        log_mass: log-sum-exp of the logits; -inf where there are none.
    """

    terms: Float[Tensor, "q c"]
    mass: Float[Tensor, "q 1"]
    log_mass: Float[Tensor, "q 1"]

    def shares(self, row_total: Float[Tensor, "q 1"]) -> Float[Tensor, "q c"]:
        """The softmax times a number per row. Overwrites `terms`."""
        return self.terms.mul_(row_total / self.mass.clamp_min(torch.finfo(self.mass.dtype).tiny))


def negatives_of(scores: Float[Tensor, "q c"], scale: float, *, overwrite: bool = True) -> Negatives:
    """The softmax of scale x score over what is not hidden (see `hide_`)."""
    top, mass = scores.new_empty(2, len(scores), 1)
    terms = scores if overwrite else torch.empty_like(scores)
    for rows in pieces(scores):
        some, shift = scores[rows], top[rows]
        torch.amax(some, dim=1, keepdim=True, out=shift).mul_(scale * LOG2_E)
        shift.masked_fill_(shift == -torch.inf, 0)
        torch.add(-shift, some, alpha=scale * LOG2_E, out=terms[rows]).exp2_()
        torch.sum(terms[rows], dim=1, keepdim=True, out=mass[rows])
    return Negatives(terms, mass, (mass.log2() + top) / LOG2_E)


def hide_(scores: Float[Tensor, "q c"], targets: Known, golds: "Golds") -> Float[Tensor, "q c"]:
    """Put -inf, in place, where there is no negative: gold, and what may not be compared."""
    if isinstance(targets, Targets):
        return scores.masked_fill_(targets.gold | ~targets.comparable, -torch.inf)
    scores[golds.rows, golds.columns] = -torch.inf
    masked = ~targets.comparable
    scores[targets.rows[masked], targets.columns[masked]] = -torch.inf
    return scores


class Golds(NamedTuple):
    """Every gold pair of a block of scores.

    Attributes:
        rows: query of each.
        columns: candidate of each.
        weight: 1 / number of gold candidates of its query: they count equally.
        per_row: gold candidates of each query.
    """

    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]
    weight: Float[Tensor, " n"]
    per_row: Int[Tensor, " q"]

    @classmethod
    def of(cls, targets: Known, dtype: torch.dtype) -> "Golds":
        """Row by row."""
        if isinstance(targets, Targets):
            rows, columns = targets.gold.nonzero(as_tuple=True)
        else:
            rows, columns = targets.rows[targets.gold], targets.columns[targets.gold]
        count = torch.bincount(rows, minlength=len(targets))
        return cls(rows, columns, 1 / count[rows].to(dtype), count)

    @property
    def alone(self) -> bool:
        """Whether every query has exactly one."""
        return bool((self.per_row == 1).all())

    def some(self, rows: slice) -> tuple["Golds", slice]:
        """Those of some queries, and where they stand among all."""
        before, here = int(self.per_row[: rows.start].sum()), int(self.per_row[rows].sum())
        place = slice(before, before + here)
        return Golds(self.rows[place] - rows.start, self.columns[place], self.weight[place], self.per_row[rows]), place

    def per_query(self, values: Float[Tensor, " n"]) -> Float[Tensor, " q"]:
        """The weighted mean of a number per gold pair."""
        return values.new_zeros(len(self.per_row)).index_add_(0, self.rows, values * self.weight)

    def each(self) -> Iterator[tuple["Golds", Bool[Tensor, " n"]]]:
        """First the first gold of every query, then the second of those that have one ...; and which of all they are."""
        start = self.per_row.cumsum(0) - self.per_row
        place = torch.arange(len(self.rows), device=self.rows.device) - start[self.rows]
        for n in range(int(self.per_row.max())):
            kept = place == n
            yield Golds(self.rows[kept], self.columns[kept], self.weight[kept], self.per_row), kept


def cross_entropy(
    scores: Float[Tensor, "q c"], targets: Known, slope: float, scale: float, factor: float = 1.0
) -> tuple[Float[Tensor, " q"], Float[Tensor, "q c"]]:
    """InfoNCE of each query with gold logits slope x score and negatives' logits scale x score.

    Overwrites `scores`.

    Returns:
        Loss per query, and `factor` times its gradient on the scores, at which the negatives' logits count with `slope` too.
    """
    golds = Golds.of(targets, scores.dtype)
    logits = scores[golds.rows, golds.columns] * slope
    negatives = negatives_of(hide_(scores, targets, golds), scale)
    # log(exp(gold) + sum of negatives) - gold, for every gold on its own: softplus keeps digits when the loss is small.
    margin = negatives.log_mass[golds.rows, 0] - logits
    pull = torch.sigmoid(margin)
    gradient = negatives.shares((slope * factor * golds.per_query(pull))[:, None])
    gradient[golds.rows, golds.columns] = -slope * factor * golds.weight * pull
    return golds.per_query(F.softplus(margin)), gradient


class _Closed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, values: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None], None, None


class ClosedForm(ABC):
    """An objective that says its value and gradient in `closed`; this makes a loss with a graph of it."""

    def __call__(self, scores: Float[Tensor, "q c"], targets: Targets) -> Float[Tensor, ""]:
        """Mean over queries."""
        check(scores, targets)
        check_contrast(targets)
        return self.per_query(scores, targets).mean()

    def per_query(self, scores: Float[Tensor, "q c"], targets: Targets) -> Float[Tensor, " q"]:
        """Loss of each query, whose gradient on the scores is the one in closed form."""
        values, gradient = self.closed(exact(scores.detach()).clone(), targets)
        return _Closed.apply(scores, values, gradient)  # type: ignore[return-value]

    @abstractmethod
    def closed(
        self, scores: Float[Tensor, "q c"], targets: Known, factor: float = 1.0
    ) -> tuple[Float[Tensor, " q"], Float[Tensor, "q c"]]:
        """Loss of each query and `factor` times its gradient on the scores. May overwrite `scores`."""
        ...
