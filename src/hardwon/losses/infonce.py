"""InfoNCE, plain and hardness-weighted."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hardwon.losses.targets import Composable, Targets, check, exact, positive


@dataclass(frozen=True)
class InfoNCE(Composable):
    """Softmax over all comparable candidates, cross-entropy with the gold one.

    van den Oord et al. 2018, arXiv:1807.03748, eq. 4. With `hardness`, Lan et al. 2025 (LLaVE), arXiv:2503.04812: every
    negative is weighted by exp(hardness x its score), the weight taken as constant; written as what it is, hardness x
    stop_gradient(score) added to the negative's logit. The paper's loss is one-way; its released code is symmetric.

    Several gold candidates of one query count equally and are not pushed away from each other's query.

    Attributes:
        temperature: divides the score.
        hardness: alpha of the paper (9 there); not divided by the temperature; 0 is plain InfoNCE.
        symmetric: average with the same loss on the transposed problem (candidate -> query).
    """

    temperature: float = 0.02
    hardness: float = 0.0
    symmetric: bool = False

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)
        if self.hardness < 0:
            raise ValueError(f"hardness must not be negative, got {self.hardness}")

    def __call__(self, scores: Float[Tensor, "q c"], targets: Targets) -> Float[Tensor, ""]:
        """Mean over queries; with `symmetric`, the mean of both directions."""
        check(scores, targets)
        forward = self._one_way(scores, targets.gold, targets.comparable)
        if not self.symmetric:
            return forward
        asked = targets.gold.any(dim=0)  # candidates that belong to some query: the queries of the reverse direction
        backward = self._one_way(scores.T[asked], targets.gold.T[asked], targets.comparable.T[asked])
        return (forward + backward) / 2

    def _one_way(
        self, scores: Float[Tensor, "q c"], gold: Bool[Tensor, "q c"], comparable: Bool[Tensor, "q c"]
    ) -> Float[Tensor, ""]:
        logits = exact(scores) / self.temperature
        negatives = (logits + self.hardness * exact(scores.detach())).masked_fill(gold | ~comparable, -torch.inf)
        # log(exp(gold) + sum of negatives) - gold, for every gold on its own: softplus keeps digits when the loss is small.
        rest = torch.logsumexp(negatives, dim=1, keepdim=True)
        loss = torch.where(gold, torch.nn.functional.softplus(rest - logits), 0)
        return (loss.sum(dim=1) / gold.sum(dim=1)).mean()
