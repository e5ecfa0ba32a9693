"""InfoNCE over the hardest negatives."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardwon.losses.contrast import ClosedForm, Golds, Known, hide_, pieces
from hardwon.losses.targets import Composable, positive


@dataclass(frozen=True)
class TopKInfoNCE(ClosedForm, Composable):
    """InfoNCE over the positive and the k hardest negatives that are not too good to be false.

    Gu et al. 2025 (UniME, stage 2), arXiv:2504.17432: candidates scored above the positive + beta are dropped as likely false
    negatives, of the rest the k highest are kept; query -> candidate only. Which ones are kept is taken as constant.

    Attributes:
        temperature: divides the score; see `InfoNCE`.
        k: negatives kept.
        beta: in units of the score; with several gold candidates, above the best of them.
    """

    temperature: float = 0.05
    k: int = 8
    beta: float = 0.1

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")
        if math.isnan(self.beta):
            raise ValueError("beta is not a number")

    def closed(
        self, scores: Float[Tensor, "q c"], targets: Known, factor: float = 1.0
    ) -> tuple[Float[Tensor, " q"], Float[Tensor, "q c"]]:
        """Loss of each query and `factor` times its gradient on the scores. Overwrites `scores`."""
        golds, slope = Golds.of(targets, scores.dtype), 1 / self.temperature
        own = scores[golds.rows, golds.columns]
        hardest, place = self._hardest(scores, targets, golds)
        log_mass = torch.logsumexp(hardest * slope, dim=1)
        margin = log_mass[golds.rows] - own * slope
        pull = torch.sigmoid(margin)
        # A query with no negatives left has a mass of zero: there is nothing to share.
        shares = torch.where(hardest > -torch.inf, (hardest * slope - log_mass[:, None]).exp(), 0)
        gradient = scores.zero_().scatter_(1, place, shares * (slope * factor * golds.per_query(pull))[:, None])
        gradient[golds.rows, golds.columns] = -slope * factor * golds.weight * pull
        return golds.per_query(F.softplus(margin)), gradient

    def kept(self, scores: Float[Tensor, "q c"], targets: Known) -> Bool[Tensor, "q c"]:
        """Which negatives take part."""
        found, place = self._hardest(scores.clone(), targets, Golds.of(targets, scores.dtype))
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, place, found > -torch.inf)

    def _hardest(
        self, scores: Float[Tensor, "q c"], targets: Known, golds: Golds
    ) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
        """Scores and columns of the k hardest negatives; -inf where there are fewer. Overwrites `scores`."""
        own = scores[golds.rows, golds.columns]
        best = scores.new_full((len(scores),), -torch.inf).scatter_reduce_(0, golds.rows, own, "amax")
        hide_(scores, targets, golds)
        k = min(self.k, scores.shape[1])
        values, places = scores.new_empty(len(scores), k), torch.empty(len(scores), k, dtype=torch.long, device=scores.device)
        for rows in pieces(scores):
            left = scores[rows].masked_fill_(scores[rows] > best[rows, None] + self.beta, -torch.inf)
            torch.topk(left, k, dim=1, out=(values[rows], places[rows]))
        return values, places
