"""Models for several threads at a time."""

import copy
import itertools
from typing import TypeVar

from hardwon.models.embedder import Embedder
from hardwon.models.listwise import ListwiseReranker
from hardwon.models.reranker import Reranker

M = TypeVar("M", Embedder, Reranker, ListwiseReranker)


def twin(model: M) -> M:
    """Another of the same weights, for another thread.

    Weights and buffers are shared, and nothing else: tokenizers keep the lengths of their last call, processors and some
    architectures what they saw last, so that two threads in one model could meet each other's. Not for training.
    """
    module = model.body.model
    shared = {id(tensor): tensor for tensor in itertools.chain(module.parameters(), module.buffers())}
    return copy.deepcopy(model, shared)
