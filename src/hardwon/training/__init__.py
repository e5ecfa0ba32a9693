"""Training of embedders and rerankers."""

from hardwon.training.adapter import SentenceTransformersLoss
from hardwon.training.align import align
from hardwon.training.loop import Settings, Step
from hardwon.training.objective import LearnedTemperature, Objective
from hardwon.training.run import train
from hardwon.training.step import Memory

__all__ = [
    "LearnedTemperature",
    "Memory",
    "Objective",
    "SentenceTransformersLoss",
    "Settings",
    "Step",
    "align",
    "train",
]
