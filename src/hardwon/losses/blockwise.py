"""Losses of all queries against all candidates without the matrix of all scores.

Given the vectors, the rows of the score matrix are independent, so a loss and its gradient are computed for some queries at a
time: the memory is that of a block of rows, the value and the gradient are those of the whole matrix. The reverse direction of
a symmetric InfoNCE needs one more pass, which sums up each column's softmax (4 matrix products instead of 3).

The same function serves several processes: each holds some of the queries and all of the candidates, and the few numbers that
depend on all queries are summed over the processes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hardwon.losses.contrast import Golds, Known, pieces
from hardwon.losses.infonce import InfoNCE
from hardwon.losses.ranks import Alone, Ranks
from hardwon.losses.reverse import Reverse, Windowed
from hardwon.losses.rules import FalseNegatives
from hardwon.losses.soft import JudgeAlignment
from hardwon.losses.targets import KnownPairs, Loss, NothingToCompare, Targets, UnusableRows, check, exact, parts_of

# Rows of a block at most. Thin matrix products spend their time on moving the large operand; with more rows than these, block
# and gradients together would be more than 0.7 of the whole matrix at 4,096 pairs of width 1,024.
MOST = 768


class Gradients(NamedTuple):
    """A loss and its gradient on the vectors.

    Attributes:
        value: of all queries of all processes.
        queries: gradient on this process's queries.
        candidates: gradient on all candidates, as far as it comes from this process's queries.
    """

    value: Float[Tensor, ""]
    queries: Float[Tensor, "q d"]
    candidates: Float[Tensor, "c d"]


def value_and_gradient(
    loss: Loss,
    queries: Float[Tensor, "q d"],
    candidates: Float[Tensor, "c d"],
    targets: Targets | KnownPairs,
    *,
    rules: FalseNegatives | None = None,
    rows: int | None = None,
    ranks: Ranks | None = None,
) -> Gradients:
    """The loss of all queries against all candidates, and its gradient on the vectors, block by block.

    Args:
        loss: an objective of this package (or a sum of them), or any function with their signature; the latter gets the whole
            matrix at once, since nothing is known of it.
        queries: unit vectors; no graph is needed.
        candidates: unit vectors; no graph is needed.
        targets: matrices, or only the known pairs of a large batch.
        rules: what to take out of the comparison.
        rows: queries per block; chosen by size if None.
        ranks: the processes among which the queries are divided; None: there is only this one.

    Raises:
        UnusableRows: scores that are not finite, queries without gold, nothing to compare.
        ValueError: targets of another shape, or a function that is not of this package, on several processes.
    """
    work = _Work(loss, exact(queries.detach()), exact(candidates.detach()), targets, rules, ranks or Alone(), rows)
    with torch.autocast(queries.device.type, enabled=False):
        return work.run()


def blockwise(
    loss: Loss,
    queries: Float[Tensor, "q d"],
    candidates: Float[Tensor, "c d"],
    targets: Targets | KnownPairs,
    *,
    rules: FalseNegatives | None = None,
    rows: int | None = None,
) -> Float[Tensor, ""]:
    """`loss(queries @ candidates.T, targets)` without that matrix, as a scalar with a graph to the vectors.

    See `value_and_gradient`.
    """

    def compute(q: Tensor, c: Tensor) -> Gradients:
        return value_and_gradient(loss, q, c, targets, rules=rules, rows=rows)

    value: Any = _Blockwise.apply(queries, candidates, compute)
    return value


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, candidates: Tensor, compute: Any) -> Tensor:
        value, *gradients = compute(queries, candidates)
        ctx.save_for_backward(*(g.to(side.dtype) for g, side in zip(gradients, (queries, candidates), strict=True)))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        queries, candidates = ctx.saved_tensors
        return queries * upstream, candidates * upstream, None


@dataclass
class _Work:
    loss: Loss
    queries: Tensor
    candidates: Tensor
    targets: Targets | KnownPairs
    rules: FalseNegatives | None
    ranks: Ranks
    rows: int | None

    def __post_init__(self) -> None:
        q, c = len(self.queries), len(self.candidates)
        shape = self.targets.shape if isinstance(self.targets, KnownPairs) else tuple(self.targets.gold.shape)
        if shape != (q, c):
            raise ValueError(f"targets are for {shape[0]} x {shape[1]} pairs, but there are {q} queries and {c} candidates")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")

    def run(self) -> Gradients:
        self.parts = parts_of(self.loss)
        # What cannot be computed row by row is an unknown function: it gets all rows at once.
        self.by_rows = all(hasattr(part, "per_query") for _, part in self.parts)
        total = self.ranks.sum(self.queries.new_full((), len(self.queries)))
        if not self.by_rows and float(total) != len(self.queries):
            raise ValueError(f"on several processes a loss must be one of hardwon.losses or a sum of them, got {self.loss!r}")
        self.step = self.rows or _even(len(self.queries)) if self.by_rows else len(self.queries)
        # Lengths instead of every number's verdict: that would be a copy of the vectors.
        self.longest = [x.norm(dim=1).amax() if x.numel() else x.new_zeros(()) for x in (self.queries, self.candidates)]
        self.finite = bool(torch.isfinite(torch.stack(self.longest)).all())
        self.total = float(total)
        self.sparse = self.rules is None and all(hasattr(part, "closed") for _, part in self.parts)
        reverses = self._reverses()
        value = self.queries.new_zeros(())
        of_queries = torch.empty_like(self.queries)
        of_candidates: Tensor | None = None
        comparable = self.queries.new_zeros(())
        for rows, scores, targets in self._blocks():
            comparable += _comparable(targets)
            for piece in self._pieces(scores):
                value += self._differentiate(scores[piece], _some(targets, piece), reverses)
            torch.mm(scores, self.candidates, out=of_queries[rows])  # the scores are their own gradient now
            mine = self.queries[rows]
            of_candidates = scores.T @ mine if of_candidates is None else of_candidates.addmm_(scores.T, mine)
        contrasting = any(hasattr(part, "per_query") and not isinstance(part, JudgeAlignment) for _, part in self.parts)
        if contrasting and not float(self.ranks.sum(comparable)):
            raise NothingToCompare(range(len(self.queries)))
        value = self.ranks.sum(value)
        for reverse in reverses.values():
            value = value + reverse.value
        if self.by_rows and not bool(torch.isfinite(value)):
            raise UnusableRows("scores or grades overflow", range(len(self.queries)))
        return Gradients(value, of_queries, torch.zeros_like(self.candidates) if of_candidates is None else of_candidates)

    def _blocks(self) -> Iterator[tuple[slice, Tensor, Known]]:
        buffer = self.queries.new_empty(min(self.step, len(self.queries)), len(self.candidates))
        for start in range(0, len(self.queries), max(self.step, 1)):
            rows = slice(start, min(start + self.step, len(self.queries)))
            scores = torch.mm(self.queries[rows], self.candidates.T, out=buffer[: rows.stop - start])
            # Matrices only where they are asked for: most of a batch's pairs are known to be nothing at all.
            targets = _some(self.targets, rows) if self.sparse else self.targets[rows]
            check(scores, targets, start, finite=self.finite)
            if self.rules and isinstance(targets, Targets):
                similar = self._similar(targets) if self.rules.copies is not None else None
                targets = self.rules(scores, targets, similar)
            yield rows, scores, targets

    def _similar(self, targets: Targets) -> Tensor:
        best = self.queries.new_full(targets.gold.shape, -torch.inf)
        for golds, _ in Golds.of(targets, best.dtype).each():
            cosines = self.candidates[golds.columns] @ self.candidates.T
            best[golds.rows] = torch.maximum(best[golds.rows], cosines)
        return best

    def _pieces(self, scores: Tensor) -> Iterator[slice]:
        """Rows of a block that are differentiated together: few where that needs copies of the scores."""
        in_place = not self.by_rows or (len(self.parts) == 1 and hasattr(self.parts[0][1], "closed"))
        return iter([slice(None)]) if in_place else pieces(scores)

    def _differentiate(self, scores: Float[Tensor, "q c"], targets: Known, reverses: dict[int, Reverse]) -> Float[Tensor, ""]:
        """These queries' share of the value. The scores are replaced by the gradient on them."""
        value, gradient = scores.new_zeros(()), None
        for n, (weight, part) in enumerate(self.parts):
            mine = scores if n == len(self.parts) - 1 else scores.clone()
            if n in reverses:
                here, slope = reverses[n].closed(mine, targets, self.total)
            else:
                # A part that is computed row by row gives a sum, an unknown function its own mean.
                here, slope = _part(part, mine, targets, weight / (self.total if hasattr(part, "per_query") else 1))
            value += here
            gradient = slope if gradient is None else gradient.add_(slope)
        if gradient is not None and gradient is not scores:
            scores.copy_(gradient)
        return value

    def _reverses(self) -> dict[int, Reverse]:
        found = {
            n: self._reverse(part, weight)
            for n, (weight, part) in enumerate(self.parts)
            if isinstance(part, InfoNCE) and part.symmetric
        }
        if found:
            for _, scores, targets in self._blocks():
                for piece in self._pieces(scores):
                    for n, reverse in enumerate(found.values(), 1):
                        mine = scores[piece]
                        reverse.add(mine if n == len(found) else mine.clone(), _some(targets, piece))
            for reverse in found.values():
                reverse.finish(self.ranks)
        return found

    def _reverse(self, part: InfoNCE, weight: float) -> Reverse:
        bound = float(self.ranks.largest(self.longest[0]) * self.longest[1])
        return (Windowed if Windowed.fits(part, bound) else Reverse)(part, weight, self.candidates)


def _even(count: int) -> int:
    """Rows of a block, so that no last block of a few rows costs as much as a whole one."""
    return math.ceil(count / math.ceil(count / MOST)) if count else 1


def _some(targets: Known, rows: slice) -> Known:
    """The targets of some queries, in the form they are in."""
    return targets.some(rows) if isinstance(targets, KnownPairs) else targets[rows]


def _comparable(targets: Known) -> float:
    """Above 0 if any query has something to be compared with."""
    if isinstance(targets, Targets):
        return float((targets.comparable & ~targets.gold).any())
    q, c = targets.shape
    return float(q * c > int((targets.gold | ~targets.comparable).sum()))


def _part(part: Any, scores: Tensor, targets: Known, factor: float) -> tuple[Tensor, Tensor]:
    """The sum of the losses of some queries and its gradient on the scores, both times a factor. May overwrite the scores.

    Of a function of the whole matrix, what it returns.
    """
    if hasattr(part, "closed"):
        losses, gradient = part.closed(scores, targets, factor)
        return losses.sum() * factor, gradient
    with torch.enable_grad():
        free = scores.detach().requires_grad_()
        value = (part.per_query(free, targets).sum() if hasattr(part, "per_query") else part(free, targets)) * factor
        (gradient,) = torch.autograd.grad(value, free)
    return value.detach(), gradient.contiguous()
