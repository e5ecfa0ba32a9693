"""Objectives: frozen values with one signature, `loss(scores[q c], targets[q c]) -> scalar`."""

from hardwon.losses.infonce import InfoNCE
from hardwon.losses.rerank import Listwise, Pairwise
from hardwon.losses.soft import JudgeAlignment
from hardwon.losses.targets import Loss, Targets, Weighted

__all__ = ["InfoNCE", "JudgeAlignment", "Listwise", "Loss", "Pairwise", "Targets", "Weighted"]
