"""The two things that one can ask of a model."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from hardwon.items import Item

Pair = tuple[Item, Item]  # query, candidate


@runtime_checkable
class Encoder(Protocol):
    """Turns items into unit vectors."""

    @property
    def fingerprint(self) -> str:
        """Identity of weights, pre-processing and pooling; changes when vectors may."""
        ...

    @property
    def dim(self) -> int:
        """Width of a vector."""
        ...

    def encode(self, items: Sequence[Item], *, progress: str = "") -> np.ndarray:
        """Vectors [n d], float32, unit length, in the order of `items`. `progress` names the work in a bar; "" shows none."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Answers one question: how relevant is each of these candidates to this query?"""

    @property
    def fingerprint(self) -> str:
        """As of an `Encoder`."""
        ...

    def score_pairs(self, pairs: Sequence[Pair], *, progress: str = "") -> np.ndarray:
        """Relevance of each (query, candidate) pair, [n], float32; higher is more relevant."""
        ...
