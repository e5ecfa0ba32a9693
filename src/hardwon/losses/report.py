"""Where the gradient of a batch goes: to the positive, to the hardest candidates, to likely false negatives."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardwon.losses.targets import KnownPairs, Loss, Targets, exact


@dataclass(frozen=True)
class GradientReport:
    """Shares of the gradient that a loss puts on a query's scores: of the sum of absolute values over the query's row.

    Attributes:
        norm: [q] that sum, times the number of queries: 2 (1 - p) / temperature for plain InfoNCE, whatever the batch size.
        positive: [q] share of the gold candidates.
        hardest: [q k] share of each of the k negatives with the highest scores, hardest first.
        false: [q] share of judged candidates whose grade is above the positive's less `margin`; not a number where the
            positive is not judged, or no other candidate is.
        repelled: [q] of the part of the gradient that pushes candidates away, the share that falls on those.
        idle: [q] queries without any gradient.
        candidates: [q k] columns of the hardest candidates.
    """

    norm: Float[Tensor, " q"]
    positive: Float[Tensor, " q"]
    hardest: Float[Tensor, "q k"]
    false: Float[Tensor, " q"]
    repelled: Float[Tensor, " q"]
    idle: Bool[Tensor, " q"]
    candidates: Int[Tensor, "q k"]

    def summary(self) -> dict[str, float]:
        """Means over the queries for which each is defined: one line of a log."""
        active = ~self.idle
        return {
            "norm": _mean(self.norm),
            "positive": _mean(self.positive[active]),
            "hardest": _mean(self.hardest[active, :1].flatten()),
            f"hardest_{self.hardest.shape[1]}": _mean(self.hardest[active].sum(dim=1)),
            "false_negatives": _mean(self.false[active]),
            "false_negatives_of_repelled": _mean(self.repelled[active]),
            "idle": float(self.idle.float().mean()),
        }

    def __str__(self) -> str:
        """The summary as a small table, in words."""
        k = self.hardest.shape[1]
        values = self.summary()
        rows = (
            ("positive", values["positive"]),
            ("hardest candidate", values["hardest"]),
            (f"{k} hardest", values[f"hardest_{k}"]),
            ("judged false negatives", values["false_negatives"]),
            ("  of what is pushed away", values["false_negatives_of_repelled"]),
            ("queries without gradient", values["idle"]),
        )
        lines = [f"gradient per query: {values['norm']:.4g} in sum of absolute values", *(_line(*row) for row in rows)]
        return "\n".join(lines)


def _line(name: str, share: float) -> str:
    return f"{name:<26}{'unknown' if math.isnan(share) else f'{100 * share:.1f} %':>10}"


def gradient_report(
    loss: Loss,
    scores: Float[Tensor, "q c"],
    targets: Targets | KnownPairs,
    *,
    hardest: int = 5,
    margin: float = 0.1,
) -> GradientReport:
    """Say where the gradient of a batch goes, so that one sees when hardness weighting amplifies a false negative.

    Args:
        loss: any objective.
        scores: of a batch.
        targets: of the batch; whatever a `FalseNegatives` rule has taken out gets no gradient and shows up as such.
        hardest: how many of the hardest negatives are listed.
        margin: a candidate whose grade is above the positive's less this is a judged false negative (0.1 in UniME-V2).

    Returns:
        Shares per query; `str(report)` is a small table.
    """
    targets = targets[:] if isinstance(targets, KnownPairs) else targets
    free = exact(scores.detach()).requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(loss(free, targets), free)
    size = slope.abs()
    norm = size.sum(dim=1)
    idle = norm == 0
    whole = norm.clamp_min(torch.finfo(norm.dtype).tiny)
    order = free.detach().masked_fill(targets.gold, -torch.inf).topk(min(hardest, scores.shape[1] - 1), dim=1).indices
    graded = targets.gold & targets.judged
    bar = targets.relevance.masked_fill(~graded, -torch.inf).amax(dim=1, keepdim=True)
    likely = targets.judged & ~targets.gold & (targets.relevance > bar - margin)
    known = graded.any(dim=1) & (targets.judged & ~targets.gold).any(dim=1)
    pushed = slope.clamp_min(0)
    nothing = torch.nan
    return GradientReport(
        norm=norm * len(scores),
        positive=(size * targets.gold).sum(dim=1) / whole,
        # With fewer negatives than asked for, gold stands in the last places: it has no part in this.
        hardest=size.gather(1, order).masked_fill(targets.gold.gather(1, order), 0) / whole[:, None],
        false=torch.where(known, (size * likely).sum(dim=1) / whole, nothing),
        repelled=torch.where(known, (pushed * likely).sum(dim=1) / pushed.sum(dim=1).clamp_min(1e-30), nothing),
        idle=idle,
        candidates=order,
    )


def _mean(values: Tensor) -> float:
    kept = values[~torch.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")
