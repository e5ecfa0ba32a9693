"""Training of embedders and rerankers."""

from hardwon.training.align import align
from hardwon.training.loop import Settings, Step
from hardwon.training.run import train
from hardwon.training.step import Memory

__all__ = ["Memory", "Settings", "Step", "align", "train"]
