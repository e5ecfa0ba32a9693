"""Alignment to a judge's graded relevance."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hardwon.losses.targets import Composable, Targets, check, exact, positive


@dataclass(frozen=True)
class JudgeAlignment(Composable):
    """Half the symmetric Kullback-Leibler divergence between the model's and the judge's distribution.

    Gu et al. 2025 (UniME-V2), arXiv:2510.13515: both distributions are softmaxes over the judged candidates of a query. The
    paper says Jensen-Shannon; the formula is half of Jeffreys' divergence. Computed with log-softmax throughout: the released
    code's log(softmax + 1e-8) loses nearly all of the gradient exactly where the model is confidently wrong.

    Only judged candidates take part; a query with fewer than two of them adds nothing but still counts in the mean.

    Attributes:
        temperature: divides the model's scores; see `InfoNCE`.
        judge_temperature: divides the judge's grades; None: the same (as in the paper).
    """

    temperature: float = 0.05
    judge_temperature: float | None = None

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)
        if self.judge_temperature is not None:
            positive("judge_temperature", self.judge_temperature)

    def __call__(self, scores: Float[Tensor, "q c"], targets: Targets) -> Float[Tensor, ""]:
        """Mean over queries of (KL(judge || model) + KL(model || judge)) / 2."""
        check(scores, targets)
        return self.per_query(scores, targets).mean()

    def per_query(self, scores: Float[Tensor, "q c"], targets: Targets) -> Float[Tensor, " q"]:
        """Loss of each query; 0 where fewer than two candidates are judged."""
        taught = targets.judged.sum(dim=1) > 1
        if not bool(taught.any()):
            return exact(scores).sum(dim=1) * 0.0
        judged = targets.judged[taught]
        model = _log_softmax(exact(scores[taught]) / self.temperature, judged)
        judge = _log_softmax(exact(targets.relevance[taught]) / (self.judge_temperature or self.temperature), judged).detach()
        gap = torch.where(judged, model - judge, 0)
        divergence = ((model.exp() - judge.exp()) * gap).sum(dim=1) / 2
        return divergence.new_zeros(len(scores)).index_put((taught,), divergence)


def _log_softmax(logits: Float[Tensor, "q c"], kept: Bool[Tensor, "q c"]) -> Float[Tensor, "q c"]:
    """Log-softmax over the kept entries; the others are 0 and carry no gradient."""
    # A finite floor instead of -inf: the gradient of log-softmax at -inf is not a number once multiplied by zero.
    low = torch.finfo(logits.dtype).min / 4
    return torch.where(kept, logits.masked_fill(~kept, low).log_softmax(dim=1), 0)
