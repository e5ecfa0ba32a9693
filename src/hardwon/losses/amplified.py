"""The amplifier of hard negatives' gradients (EGA)."""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hardwon.losses.contrast import ClosedForm, Golds, Known, hide_, negatives_of, pieces
from hardwon.losses.targets import Composable, positive

Kind = Literal["amplify", "hinge", "redistribute", "colder"]


@dataclass(frozen=True)
class AmplifiedInfoNCE(ClosedForm, Composable):
    """Plain InfoNCE as a value, a gradient in which negatives close to the positive weigh more.

    Xue et al. 2025 (QQMM-embed), arXiv:2506.02020, "explicit gradient amplifier". **Published**: InfoNCE's gradient on the
    scores is (P - I) / temperature; P is replaced by a Pbar in which hard negatives weigh more; hardness is relative, that is,
    how close a negative's score comes to the positive's; query, positive and negatives are all changed consistently (rows
    keep summing to zero). **Our reconstruction**, since the formula could not be read and no training code was released: the
    four functions below, alpha = 1 (the only default seen in the authors' later code), one way, no masks. So a result of
    this objective is evidence about these functions, not about the authors' model.

    With p_j the softmax and h_j the hardness of negative j, gold score g:

    - "amplify" (the default): weight p_j (1 + alpha h_j), h_j = sigmoid((s_j - g) / width). At most doubled for alpha = 1, easy
      negatives untouched; the positive is pulled by what was added.
    - "hinge": the same with h_j = 1 - (g - s_j) / width, cut to [0, 1]: only negatives within `width` of the positive count.
    - "redistribute": the negatives' total 1 - p_g stays, shared in proportion to p_j exp(alpha s_j).
    - "colder": everything renormalised with p_j exp(alpha (s_j - g)). That is InfoNCE at the temperature
      1 / (1 / temperature + alpha) with the gradient's scale kept: a control, not a method.

    **Every comparison must show the control**, `loss.control()`: what merely sharpening the softmax would have given.

    Attributes:
        temperature: divides the score; see `InfoNCE`.
        kind: see above.
        alpha: strength; 0 is plain InfoNCE.
        width: of the hardness, in units of the score ("amplify" and "hinge").
        cap: keep a query's total weight of negatives at 1 at most, as it is in plain InfoNCE.
    """

    temperature: float = 0.05
    kind: Kind = "amplify"
    alpha: float = 1.0
    width: float = 0.1
    cap: bool = False

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)
        positive("width", self.width)
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha must not be negative, got {self.alpha}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")

    def control(self) -> "AmplifiedInfoNCE":
        """The colder temperature whose weights change as fast around the positive's score as those of this objective do."""
        tie = {"amplify": 0.25 / (1 + self.alpha / 2), "hinge": 1 / (1 + self.alpha)}
        alpha = self.alpha * tie[self.kind] / self.width if self.kind in tie else self.alpha
        return replace(self, kind="colder", alpha=alpha)

    def closed(
        self, scores: Float[Tensor, "q c"], targets: Known, factor: float = 1.0
    ) -> tuple[Float[Tensor, " q"], Float[Tensor, "q c"]]:
        """Plain InfoNCE of each query and `factor` times the amplified gradient on the scores. Overwrites `scores`."""
        golds = Golds.of(targets, scores.dtype)
        gold_scores = scores[golds.rows, golds.columns]
        hide_(scores, targets, golds)
        losses = scores.new_empty(len(scores))
        for rows in pieces(scores):
            mine, place = golds.some(rows)
            losses[rows] = self._differentiate(scores[rows], mine, gold_scores[place], factor)
        return losses, scores

    def _differentiate(
        self, scores: Float[Tensor, "q c"], golds: Golds, gold_scores: Float[Tensor, " n"], factor: float
    ) -> Float[Tensor, " q"]:
        """Plain InfoNCE of some queries. Their scores are replaced by `factor` times the amplified gradient on them."""
        slope = 1 / self.temperature
        plain = negatives_of(scores, slope, overwrite=False)
        margin = plain.log_mass[golds.rows, 0] - slope * gold_scores
        pull, sharp = torch.sigmoid(margin), plain
        if self.kind in ("redistribute", "colder"):
            sharp = negatives_of(scores, slope + self.alpha, overwrite=False)
        if self.kind == "colder":
            pull = torch.sigmoid(sharp.log_mass[golds.rows, 0] - (slope + self.alpha) * gold_scores)
        most = slope * factor * golds.weight[:, None]
        if golds.alone:
            total = self._amplify(sharp.shares(most * pull[:, None]), scores, gold_scores[:, None], most)
            scores[golds.rows, golds.columns] = -total
        else:
            shares, gradient = sharp.shares(torch.ones_like(sharp.mass)), torch.zeros_like(scores)
            for each, picked in golds.each():
                weights, mine = shares[each.rows] * (most * pull[:, None])[picked], scores[each.rows]
                total = self._amplify(weights, mine, gold_scores[picked][:, None], most[picked])
                gradient[each.rows] += mine
                gradient[each.rows, each.columns] -= total
            scores.copy_(gradient)
        return golds.per_query(F.softplus(margin))

    def _amplify(
        self,
        weights: Float[Tensor, "q c"],
        scores: Float[Tensor, "q c"],
        gold: Float[Tensor, "q 1"],
        most: Float[Tensor, "q 1"],
    ) -> Float[Tensor, " q"]:
        """Add to each negative's weight what its hardness adds; in place of the scores. Gives each query's total."""
        if self.kind in ("amplify", "hinge"):
            hardness = torch.add(-gold / self.width, scores, alpha=1 / self.width, out=scores)
            hardness = hardness.sigmoid_() if self.kind == "amplify" else hardness.add_(1).clamp_(0, 1)
            torch.addcmul(weights, weights, hardness, value=self.alpha, out=scores)
        else:
            scores.copy_(weights)
        total = scores.sum(dim=1, keepdim=True)
        if self.cap:
            scores.div_((total / most).clamp_min(1))
            total = torch.minimum(total, most)
        return total[:, 0]
