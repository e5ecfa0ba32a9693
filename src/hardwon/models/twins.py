"""Models for several threads at a time."""

import copy
import itertools
from typing import Any, TypeVar

M = TypeVar("M")


def twins(model: M, lanes: int) -> tuple[M, ...]:
    """A model for each thread: itself, and others of the same weights."""
    return (model, *(twin(model) for _ in range(lanes - 1)))


def twin(model: M) -> M:
    """Another of the same weights, for another thread: of an embedder or a reranker, of pairs or of lists.

    Weights and buffers are shared, and nothing else: tokenizers keep the lengths of their last call, processors and some
    architectures what they saw last, so that two threads in one model could meet each other's. Not for training.
    """
    given: Any = model
    module = given.body.model
    shared = {id(tensor): tensor for tensor in itertools.chain(module.parameters(), module.buffers())}
    return copy.deepcopy(model, shared)
