"""The things that one can ask of a model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from hardwon.errors import BadItems, ModelError, TooLarge
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
class ManyEncoder(Encoder, Protocol):
    """An encoder that works at several chunks at a time, for another one that it stands for."""

    @property
    def inner(self) -> Encoder:
        """The other one."""
        ...

    def encode_each(self, chunks: Sequence[Sequence[Item]]) -> Iterator[np.ndarray]:
        """Vectors of each chunk, in their order."""
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
        """Judgements of (query, candidate) pairs, in their order.

        A judge whose answers cost something raises `hardwon.errors.Unfinished` where it fails halfway: those it had are kept.
        """
        ...


def name_of(judge: object) -> str:
    """Name of a judge; "" if it has none: a reranker's `name` is what it calls a pair."""
    name = getattr(judge, "name", "")
    return name if isinstance(name, str) else ""


@runtime_checkable
class ManyJudge(YesNo, Protocol):
    """A judge that works at several batches at a time."""

    @property
    def at_once(self) -> int:
        """How many."""
        ...

    def judge_each(self, batches: Sequence[Sequence[Pair]], *, skip: bool) -> "Iterator[Judgements]":
        """Judgements of each batch, in their order; `skip`: as `judgements_of_readable`."""
        ...


def judgements(judge: YesNo | Scorer, pairs: Sequence[Pair], *, progress: str = "") -> Judgements:
    """What a judge says; a scorer's log-odds are taken as the logit of Yes against 0 for No."""
    if isinstance(judge, YesNo):
        return judge.judge(pairs, progress=progress)
    odds = judge.score_pairs(pairs, progress=progress)
    return Judgements(odds, np.zeros_like(odds))


def judgements_of_readable(judge: YesNo | Scorer, pairs: Sequence[Pair], *, progress: str = "") -> Judgements:
    """`judgements`, where pairs with something that the judge cannot read have no usable answer, and the reason why.

    So have pairs that it cannot read together, although it can read either.

    Raises:
        TooLarge: a pair that does not fit into memory: that is nothing about the pair.
    """
    bad: dict[Item, str] = {}
    yes, no = (np.full(len(pairs), np.nan, dtype=np.float32) for _ in range(2))
    while True:
        good = [n for n, pair in enumerate(pairs) if not bad.keys() & set(pair)]
        try:
            none = Judgements(yes[:0], no[:0])
            said = _halved(judge, [pairs[n] for n in good], progress) if good else none
        except BadItems as error:
            found = {entry.item: entry.reason for entry in error.items}
            if not found.keys() & {item for n in good for item in pairs[n]}:
                raise
            bad |= found
            continue
        yes[good], no[good] = said.yes, said.no
        refused = {n: why for n, pair in enumerate(pairs) for item in pair if (why := bad.get(item))}
        return Judgements(yes, no, {good[n]: why for n, why in said.problems.items()} | refused)


def _halved(judge: YesNo | Scorer, pairs: Sequence[Pair], progress: str = "") -> Judgements:
    """`judgements`, asked for in halves where it fails, down to the pairs that fail by themselves."""
    try:
        return judgements(judge, pairs, progress=progress)
    except (BadItems, TooLarge):
        raise
    except ModelError as error:
        if len(pairs) == 1:
            nothing = np.full(1, np.nan, dtype=np.float32)
            return Judgements(nothing, nothing, {0: str(error)})
    half = len(pairs) // 2
    one, other = _halved(judge, pairs[:half]), _halved(judge, pairs[half:])
    problems = dict(one.problems) | {half + n: why for n, why in other.problems.items()}
    return Judgements(np.concatenate([one.yes, other.yes]), np.concatenate([one.no, other.no]), problems)
