"""Objectives that exist to be compared with: a constant margin, and a colder temperature."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from hardwon.losses import InfoNCE, Targets


@dataclass(frozen=True)
class Margin:
    """InfoNCE that asks the positive to be ahead by a constant: the active part of LLaVE's hardness without its weighting.

    Attributes:
        temperature: divides the score.
        margin: in cosine; LLaVE's handicap is hardness x the positive's score x its colder temperature, 0.107 at 0.7.
        symmetric: see `InfoNCE`.
    """

    temperature: float
    margin: float = 0.1
    symmetric: bool = False

    def __call__(self, scores: Float[Tensor, "q c"], targets: Targets) -> Float[Tensor, ""]:
        """Mean over queries."""
        return InfoNCE(self.temperature, symmetric=self.symmetric)(scores - self.margin * targets.gold, targets)


def colder(temperature: float, hardness: float) -> float:
    """tau': the temperature that weighs negatives among themselves as hardness does, 1 / (1 / tau + alpha)."""
    return 1 / (1 / temperature + hardness)
