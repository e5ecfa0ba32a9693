"""hardwon's objectives for people who train with sentence-transformers' own trainer."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from torch import Tensor, nn

from hardwon.errors import DataError
from hardwon.losses import FalseNegatives, KnownPairs, Loss, blockwise


class SentenceTransformersLoss(CachedLossMixin, nn.Module):
    """Any objective of `hardwon.losses` as a loss of `SentenceTransformerTrainer`.

    The columns of the data set are anchor, positive and any number of negatives; every anchor is compared with the positives
    and negatives of all rows. A column "label" may hold the judge's grades, one of the positive and one of each negative, in
    the order of the columns: `JudgeAlignment` learns from them. Texts that occur twice in a batch are not known to be equal
    here: use the trainer's `BatchSamplers.NO_DUPLICATES`, or `FalseNegatives(copies=0.999)`.

    With `mini_batch_size`, embeddings are computed in small batches and their gradients cached (GradCache, arXiv:2101.06983) by
    sentence-transformers' own machinery. On several devices each device compares its own batch, as is the trainer's default;
    `hardwon.train` gathers candidates over all of them.

    Args:
        model: the model that is trained.
        loss: an objective, or a sum of them.
        rules: candidates to take out of the comparison.
        mini_batch_size: inputs of one forward pass; None: the whole batch at once, without a cache.

    Example:
        >>> loss = SentenceTransformersLoss(model, InfoNCE(0.02, hardness=9.0), mini_batch_size=32)  # doctest: +SKIP
        >>> SentenceTransformerTrainer(model=model, train_dataset=pairs, loss=loss).train()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: SentenceTransformer,
        loss: Loss,
        *,
        rules: FalseNegatives | None = None,
        mini_batch_size: int | None = None,
    ):
        super().__init__()
        if mini_batch_size is not None and mini_batch_size < 1:
            raise ValueError(f"mini_batch_size must be at least 1, got {mini_batch_size}")
        self.model, self.objective, self.rules = model, loss, rules
        self.uses_gradient_cache = mini_batch_size is not None
        self.mini_batch_size = mini_batch_size or 1

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch, with a graph to the model's weights.

        Raises:
            DataError: fewer than two columns, or grades that do not match the columns.
        """
        columns = list(sentence_features)
        if len(columns) < 2:
            raise DataError(f"the data set needs at least the columns anchor and positive, got {len(columns)} column(s)")
        if self.uses_gradient_cache:
            return self.forward_cached(columns, labels)
        return self._loss([self.model(column)["sentence_embedding"] for column in columns], labels)

    def calculate_loss(self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False) -> Tensor:
        """The loss of a whole batch of embeddings; called by sentence-transformers' gradient cache."""
        value = self._loss([torch.cat(parts) for parts in reps], labels)
        if with_backward:
            value.backward()
            return value.detach()
        return value

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of the loss."""
        return {"objective": repr(self.objective), "rules": repr(self.rules)}

    def _loss(self, columns: list[Tensor], labels: Tensor | None) -> Tensor:
        queries, *candidates = (F.normalize(column.float(), dim=1) for column in columns)
        targets = _targets(len(queries), len(candidates), labels, queries.device)
        return blockwise(self.objective, queries, torch.cat(candidates), targets, rules=self.rules)


def _targets(count: int, columns: int, labels: Tensor | None, device: torch.device) -> KnownPairs:
    """Query i belongs to candidate i; its k-th negative is candidate i + k x queries."""
    if labels is None:
        return KnownPairs.diagonal(count, count * columns, device)
    grades = labels.reshape(count, -1).float()
    if grades.shape[1] != columns:
        raise DataError(
            f"the labels hold {grades.shape[1]} grade(s) a row, the data set {columns} candidate(s): "
            "one grade for the positive and one for each negative, in the order of the columns, or no labels at all"
        )
    rows = torch.arange(count, device=device).repeat_interleave(columns)
    place = torch.arange(columns, device=device).repeat(count)
    yes = torch.ones(len(rows), dtype=torch.bool, device=device)
    return KnownPairs((count, count * columns), rows, rows + place * count, place == 0, yes, grades.flatten().to(device), yes)
