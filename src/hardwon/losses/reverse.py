"""The direction candidate -> query of a symmetric InfoNCE, when only a block of rows exists at a time.

A column's softmax needs all rows, so the scores are made twice: once to sum up every column, once for the gradient.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hardwon.losses.contrast import LOG2_E, Golds, Known, cross_entropy, hide_, pieces
from hardwon.losses.infonce import InfoNCE
from hardwon.losses.ranks import Ranks


class Reverse:
    """Both directions of a symmetric InfoNCE: the columns' softmaxes are put together from blocks of rows.

    First `add` for all rows, then `finish`, then `closed` for all rows again.

    Attributes:
        value: of the reverse direction, times half the weight; known after `finish`.
    """

    def __init__(self, loss: InfoNCE, weight: float, like: Float[Tensor, "c d"]):
        self.weight, self.slope = weight / 2, 1 / loss.temperature
        self.scale = self.slope + loss.hardness
        empty = like.new_zeros(len(like))
        self.top, self.mass = torch.full_like(empty, -torch.inf), empty
        # (column, logit) of every gold pair of this process; it may be one without queries
        self.golds = [(torch.empty(0, dtype=torch.long, device=empty.device), empty[:0])]

    def add(self, scores: Float[Tensor, "q c"], targets: Known) -> None:
        """Count the scores of some queries. Overwrites them."""
        golds = Golds.of(targets, scores.dtype)
        self.golds.append((golds.columns, scores[golds.rows, golds.columns] * self.slope))
        self._add(hide_(scores, targets, golds))

    def _add(self, scores: Float[Tensor, "q c"]) -> None:
        top = torch.maximum(self.top, scores.amax(dim=0) * self.scale)
        shift = torch.where(top > -torch.inf, top, 0)
        terms = torch.add(-shift, scores, alpha=self.scale, out=scores).exp_()
        self.mass.mul_((self.top - shift).exp()).add_(terms.sum(dim=0))
        self.top = top

    def finish(self, ranks: Ranks) -> None:
        """Value and factors of the reverse direction, over all processes."""
        top = ranks.largest(self.top)
        shift = torch.where(top > -torch.inf, top, 0)
        mass = ranks.sum(self.mass * (self.top - shift).exp())
        self.log_mass = mass.log() + shift
        columns, logits = (torch.cat(list(parts)) for parts in zip(*self.golds, strict=True))
        count = ranks.sum(torch.zeros_like(mass).index_add_(0, columns, torch.ones_like(logits)))
        asked = float((count > 0).sum())
        margin, share = self.log_mass[columns] - logits, 1 / count[columns]
        self.factor = self.weight / asked
        self.value = ranks.sum((F.softplus(margin) * share).sum() * self.factor)
        pull = ranks.sum(torch.zeros_like(mass).index_add_(0, columns, torch.sigmoid(margin) * share))
        # exp(offset + logit) is the weight of a negative: its column's softmax times the pull on all golds of the column.
        offset = (pull * self.factor * self.slope).log() - self.log_mass
        self.offset = torch.where((mass > 0) & (pull > 0), offset, -torch.inf)
        self.count = count

    def closed(
        self, scores: Float[Tensor, "q c"], targets: Known, total: float
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "q c"]]:
        """The next queries' share of the value, among `total` queries, and both directions' gradient. Overwrites `scores`."""
        golds = Golds.of(targets, scores.dtype)
        back = self._pull_on(golds, scores)
        gradient = hide_(torch.add(self.offset, scores, alpha=self.scale), targets, golds).exp_()
        gradient[golds.rows, golds.columns] = back
        losses, forward = cross_entropy(scores, targets, self.slope, self.scale, self.weight / total)
        return losses.sum() * (self.weight / total), forward.add_(gradient)

    def _pull_on(self, golds: Golds, scores: Float[Tensor, "q c"]) -> Float[Tensor, " n"]:
        """The reverse direction's gradient on gold pairs."""
        margin = self.log_mass[golds.columns] - scores[golds.rows, golds.columns] * self.slope
        return -self.slope * self.factor * torch.sigmoid(margin) / self.count[golds.columns]


# exp of this and of its negative leave float32 room for a sum of a million terms, and for seven digits of the smallest one.
WINDOW = 71.0


class Windowed(Reverse):
    """The same where all logits are small: one exponential serves rows and columns, and no maxima are needed.

    Both softmaxes are exp(logit) over a sum. So the gradient is one matrix times (a number per row + a number per column).
    """

    @staticmethod
    def fits(loss: InfoNCE, bound: float) -> bool:
        """Whether no logit can leave the window, if no score is beyond `bound` on either side."""
        return bound * (1 / loss.temperature + loss.hardness) <= WINDOW

    def __init__(self, loss: InfoNCE, weight: float, like: Float[Tensor, "c d"]):
        super().__init__(loss, weight, like)
        self.top = torch.zeros_like(self.mass)
        self.rows: list[Tensor] = []
        self.next = 0

    def _add(self, scores: Float[Tensor, "q c"]) -> None:
        mass = scores.new_empty(len(scores))
        for rows in pieces(scores):
            terms = scores[rows].mul_(self.scale * LOG2_E).exp2_()
            self.mass += terms.sum(dim=0)
            torch.sum(terms, dim=1, out=mass[rows])
        self.rows.append(mass)

    def closed(
        self, scores: Float[Tensor, "q c"], targets: Known, total: float
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "q c"]]:
        """See `Reverse.closed`."""
        golds = Golds.of(targets, scores.dtype)
        logits, back = scores[golds.rows, golds.columns] * self.slope, self._pull_on(golds, scores)
        mass, factor = self.rows[self.next], self.weight / total
        self.next += 1
        margin = mass.log()[golds.rows] - logits
        pull = torch.sigmoid(margin)
        # Rows without negatives have no terms: any number would do for them.
        share = (self.slope * factor) * golds.per_query(pull) / mass.clamp_min(torch.finfo(mass.dtype).tiny)
        of_columns = self.offset.exp()
        hide_(scores, targets, golds)
        for rows in pieces(scores):
            scores[rows].mul_(self.scale * LOG2_E).exp2_().mul_(share[rows, None] + of_columns)
        scores[golds.rows, golds.columns] = back - self.slope * factor * golds.weight * pull
        return golds.per_query(F.softplus(margin)).sum() * factor, scores
