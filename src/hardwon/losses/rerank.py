"""Objectives of rerankers: pairwise and listwise (trained jointly in UniME-V2, arXiv:2510.13515)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hardwon.losses.contrast import Golds
from hardwon.losses.targets import Composable, Targets, check, check_contrast, exact, positive


@dataclass(frozen=True)
class Pairwise(Composable):
    """Is this candidate right? Binary cross-entropy on the score as log-odds of Yes.

    The paper teaches the positive to answer Yes and the hardest negative to answer No; here gold is Yes, every other
    comparable candidate No, and both halves weigh the same for each query. So a query with nothing to compare adds nothing
    (a Yes alone would teach to say Yes), but still counts in the mean.

    Attributes:
        scale: multiplies the scores; 1 when they are log-odds already.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        positive("scale", self.scale)

    def __call__(self, scores: Float[Tensor, "q c"], targets: Targets) -> Float[Tensor, ""]:
        """Mean over queries of (mean over gold + mean over the rest) / 2."""
        check(scores, targets)
        check_contrast(targets)
        return self.per_query(scores, targets).mean()

    def per_query(self, scores: Float[Tensor, "q c"], targets: Targets) -> Float[Tensor, " q"]:
        """Loss of each query; 0 where nothing may be compared with the gold."""
        negative = targets.comparable & ~targets.gold
        odds = exact(scores) * self.scale
        yes = torch.where(targets.gold, F.softplus(-odds), 0).sum(dim=1) / targets.gold.sum(dim=1)
        no = torch.where(negative, F.softplus(odds), 0).sum(dim=1) / negative.sum(dim=1).clamp(min=1)
        return torch.where(negative.any(dim=1), (yes + no) / 2, 0)


@dataclass(frozen=True)
class Listwise(Composable):
    """Which of these candidates is right? Cross-entropy of the softmax over a query's list.

    The paper has a language model name the number of the positive in a shuffled list; on scores that is a softmax over the
    list. Unlike a position in a prompt, it cannot depend on the order.

    Attributes:
        temperature: divides the scores.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)

    def __call__(self, scores: Float[Tensor, "q c"], targets: Targets) -> Float[Tensor, ""]:
        """Mean over queries; several gold candidates count equally."""
        check(scores, targets)
        check_contrast(targets)
        return self.per_query(scores, targets).mean()

    def per_query(self, scores: Float[Tensor, "q c"], targets: Targets) -> Float[Tensor, " q"]:
        """Loss of each query: the mean over its gold candidates of -log softmax, each against all the others."""
        logits = (exact(scores) / self.temperature).masked_fill(~targets.comparable, -torch.inf)
        golds, total = Golds.of(targets, logits.dtype), logits.new_zeros(len(logits))
        for each, _ in golds.each():
            rows, columns = each.rows, each.columns
            others = logits[rows].scatter(1, columns[:, None], -torch.inf)
            # softplus of a difference, not log-softmax: the latter has no digits left where the loss is almost zero.
            # A list of gold alone has nothing to say; the finite floor keeps its gradient a number.
            rest = torch.logsumexp(others.clamp_min(torch.finfo(others.dtype).min / 4), dim=1)
            total = total.index_add(0, rows, each.weight * F.softplus(rest - logits[rows, columns]))
        return total
