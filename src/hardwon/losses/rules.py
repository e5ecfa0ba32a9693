"""Rules that take likely false negatives out of the comparison."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hardwon.losses.targets import Targets


@dataclass(frozen=True)
class FalseNegatives:
    """Which candidates are too good to be negatives. None switches a rule off; each threshold lives in a space of its own.

    Gold candidates always stay. With several of them, the best one is what others are measured against.

    Attributes:
        student: drop a candidate whose score is above the positive's + this; 0.1 in UniME, arXiv:2504.17432.
        judge: drop a judged candidate whose grade is above the positive's - this; 0.1 in UniME-V2, arXiv:2510.13515. Does
            nothing for a query whose positive has no grade.
        copies: drop a candidate whose cosine with the positive itself is above this; 0.95 in RzenEmbed, arXiv:2510.27350.
    """

    student: float | None = None
    judge: float | None = None
    copies: float | None = None

    def __call__(self, scores: Float[Tensor, "q c"], targets: Targets, similar: Float[Tensor, "q c"] | None = None) -> Targets:
        """The targets with fewer comparable candidates.

        Args:
            scores: of the model that is trained.
            targets: what is known.
            similar: largest cosine of each candidate with a gold candidate of the query; needed by `copies`.

        Raises:
            ValueError: `copies` is set and `similar` is not given.
        """
        if self.copies is not None and similar is None:
            raise ValueError("the rule `copies` needs the cosines between candidates (`similar`)")
        drop = torch.zeros_like(targets.gold)
        if self.student is not None:
            drop |= scores.detach() > _best(scores.detach(), targets.gold) + self.student
        if self.judge is not None:
            drop |= targets.judged & (targets.relevance > _best(targets.relevance, targets.gold & targets.judged) - self.judge)
        if self.copies is not None and similar is not None:
            drop |= similar > self.copies
        return Targets(targets.gold, targets.judged, targets.relevance, targets.gold | (targets.comparable & ~drop))


def _best(values: Tensor, among: Tensor) -> Float[Tensor, "q 1"]:
    """The largest value of each row among some; infinite where there are none, so that no rule applies."""
    best = values.masked_fill(~among, -torch.inf).amax(dim=1, keepdim=True)
    return torch.where(best > -torch.inf, best, torch.inf)
