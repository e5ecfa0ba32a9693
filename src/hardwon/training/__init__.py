"""Training of embedders and rerankers."""

import hardwon.models.torchvision_guard  # noqa: F401  (first: before anything imports transformers)
from hardwon.training.adapter import SentenceTransformersLoss
from hardwon.training.align import align
from hardwon.training.groups import Groups
from hardwon.training.loop import Settings, Step
from hardwon.training.objective import LearnedTemperature, Objective
from hardwon.training.run import train
from hardwon.training.step import Memory

__all__ = [
    "Groups",
    "LearnedTemperature",
    "Memory",
    "Objective",
    "SentenceTransformersLoss",
    "Settings",
    "Step",
    "align",
    "train",
]
