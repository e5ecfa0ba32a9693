"""InfoNCE, plain and hardness-weighted."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from hardwon.losses.contrast import ClosedForm, Known, cross_entropy
from hardwon.losses.targets import Composable, Targets, positive


@dataclass(frozen=True)
class InfoNCE(ClosedForm, Composable):
    """Softmax over all comparable candidates, cross-entropy with the gold one.

    van den Oord et al. 2018, arXiv:1807.03748, eq. 4. With `hardness`, Lan et al. 2025 (LLaVE), arXiv:2503.04812: every
    negative is weighted by exp(hardness x its score), the weight taken as constant; written as what it is, hardness x
    stop_gradient(score) added to the negative's logit. The paper's loss is one-way; its released code is symmetric.

    Several gold candidates of one query count equally and are not pushed away from each other's query.

    Attributes:
        temperature: divides the score. The papers train large models at 0.02; 0.05 is what validation likes with small ones
            (docs/studies.md), and what sentence-transformers has.
        hardness: alpha of the paper (9 there); not divided by the temperature; 0 is plain InfoNCE.
        symmetric: average with the same loss on the transposed problem (candidate -> query).
    """

    temperature: float = 0.05
    hardness: float = 0.0
    symmetric: bool = False

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)
        if not 0 <= self.hardness < math.inf:
            raise ValueError(f"hardness must not be negative, got {self.hardness}")

    def __call__(self, scores: Float[Tensor, "q c"], targets: Targets) -> Float[Tensor, ""]:
        """Mean over queries; with `symmetric`, the mean of both directions."""
        forward = super().__call__(scores, targets)
        if not self.symmetric:
            return forward
        asked = targets.gold.any(dim=0)  # candidates that belong to some query: the queries of the reverse direction
        turned = (m.T[asked] for m in (targets.gold, targets.judged, targets.relevance, targets.comparable))
        return (forward + self.per_query(scores.T[asked], Targets(*turned)).mean()) / 2

    def closed(
        self, scores: Float[Tensor, "q c"], targets: Known, factor: float = 1.0
    ) -> tuple[Float[Tensor, " q"], Float[Tensor, "q c"]]:
        """Loss of each query and `factor` times its gradient on the scores, one way. Overwrites `scores`."""
        return cross_entropy(scores, targets, 1 / self.temperature, 1 / self.temperature + self.hardness, factor)
