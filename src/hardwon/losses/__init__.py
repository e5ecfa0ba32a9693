"""Objectives: frozen values with one signature, `loss(scores[q c], targets[q c]) -> scalar`."""

from hardwon.losses.amplified import AmplifiedInfoNCE
from hardwon.losses.blockwise import blockwise, value_and_gradient
from hardwon.losses.infonce import InfoNCE
from hardwon.losses.report import GradientReport, gradient_report
from hardwon.losses.rerank import Listwise, Pairwise
from hardwon.losses.rules import FalseNegatives
from hardwon.losses.soft import JudgeAlignment
from hardwon.losses.targets import KnownPairs, Loss, Targets, UnusableRows, Weighted
from hardwon.losses.topk import TopKInfoNCE

__all__ = [
    "AmplifiedInfoNCE",
    "FalseNegatives",
    "GradientReport",
    "InfoNCE",
    "JudgeAlignment",
    "KnownPairs",
    "Listwise",
    "Loss",
    "Pairwise",
    "Targets",
    "TopKInfoNCE",
    "UnusableRows",
    "Weighted",
    "blockwise",
    "gradient_report",
    "value_and_gradient",
]
