"""The things that one can ask of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


@runtime_checkable
class ListScorer(Protocol):
    """Orders the candidates of a query, perhaps in sight of each other.

    What it says of one list can be compared within that list only.
    """

    @property
    def fingerprint(self) -> str:
        """As of an `Encoder`."""
        ...

    def score_lists(self, queries: Sequence[Item], lists: Sequence[Sequence[Item]], *, progress: str = "") -> list[np.ndarray]:
        """Relevance of the candidates of each query, [k] each, float32, in their order; higher is more relevant."""
        ...


def score_lists(
    scorer: "ListScorer | Scorer", queries: Sequence[Item], lists: Sequence[Sequence[Item]], *, progress: str = ""
) -> list[np.ndarray]:
    """What any reranker says of the candidates of each query; see `ListScorer`."""
    if isinstance(scorer, ListScorer):
        return scorer.score_lists(queries, lists, progress=progress)
    return by_pairs(scorer, queries, lists, progress=progress)


def by_pairs(
    scorer: Scorer, queries: Sequence[Item], lists: Sequence[Sequence[Item]], *, progress: str = ""
) -> list[np.ndarray]:
    """`score_lists` of who reads one candidate at a time."""
    pairs = [(query, item) for query, items in zip(queries, lists, strict=True) for item in items]
    scores, ends = scorer.score_pairs(pairs, progress=progress), np.cumsum([len(items) for items in lists])
    return np.split(scores, ends[:-1]) if len(lists) else []


@dataclass(frozen=True)
class Judgements:
    """What a judge says of some pairs, as it said it.

    Attributes:
        yes: logit of the answer Yes for each pair, [n], float32; NaN where there was no usable answer.
        no: logit of the answer No.
        problems: why there was no usable answer, by position; never a number that was made up instead.
    """

    yes: np.ndarray
    no: np.ndarray
    problems: Mapping[int, str] = field(default_factory=dict)

    @property
    def odds(self) -> np.ndarray:
        """Log-odds of Yes, [n]; their sigmoid is the softmax over the two logits."""
        return self.yes - self.no


@runtime_checkable
class YesNo(Protocol):
    """Answers Yes or No: does this candidate belong to this query?"""

    @property
    def fingerprint(self) -> str:
        """As of an `Encoder`; also changes with the wording of the question."""
        ...

    def judge(self, pairs: Sequence[Pair], *, progress: str = "") -> Judgements:
        """Judgements of (query, candidate) pairs, in their order."""
        ...


def judgements(judge: YesNo | Scorer, pairs: Sequence[Pair], *, progress: str = "") -> Judgements:
    """What a judge says; a scorer's log-odds are taken as the logit of Yes against 0 for No."""
    if isinstance(judge, YesNo):
        return judge.judge(pairs, progress=progress)
    odds = judge.score_pairs(pairs, progress=progress)
    return Judgements(odds, np.zeros_like(odds))
