"""Rerankers behind the worker: of pairs, and of lists, which say something of a candidate in sight of the others only."""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from anyio import from_thread, to_thread

from hardwon.errors import BadMedia
from hardwon.items import Item
from hardwon.models import Pair, Reranker
from hardwon.models.length import shortened
from hardwon.models.preflight import refusal
from hardwon.pictures import open_picture
from hardwon.search import Fused
from hardwon.serve.batching import Done, Unusable, Work

Score = Callable[[Sequence[Any]], Coroutine[Any, Any, Done]]  # hands rows to the worker


class _Misread(Unusable):
    """As `Unusable`, where the position is that of a candidate in its list."""


def scoring(*models: Any) -> Work:
    """What a reranker does with rows: pairs, or (query, candidate, candidate ...) for one of lists.

    The value of a pair is a number, that of a list an array [k].

    Args:
        models: the reranker, for each lane of the worker.
    """
    if isinstance(models[0], Reranker):
        return Work.scoring(*models)
    model, *others = models

    def check(row: Sequence[Item]) -> str:
        query, *items = row
        if any(item.pictures for item in row) or "text" not in model.body.modalities:
            if reason := refusal(model.body, (query,)):
                raise _Misread(f"the query: {reason}")
            for n, item in enumerate(items):
                if reason := refusal(model.body, (item,)) or model.refusal(query, item):
                    raise _Misread(reason, n)
        return ""

    def cost(row: Sequence[Item]) -> int:
        return model.listing.permutations * model.cost((row[0], tuple(row[1:])))

    def run(rows: Sequence[Sequence[Item]]) -> np.ndarray:
        made = np.empty(len(rows), dtype=object)
        for n, scores in enumerate(model.score_lists([row[0] for row in rows], [row[1:] for row in rows])):
            made[n] = scores
        return made

    return Work("list", check, cost, run, tuple(scoring(each) for each in others))


async def scored(score: Score, model: Any, query: Item, items: Sequence[Item]) -> Done:
    """What a reranker says of the candidates of one query, [k].

    Raises:
        Unusable: something that cannot be read; its position is that of the candidate.
    """
    if isinstance(model, Reranker):
        return await score([(query, item) for item in items])
    try:
        done = await score([(query, *items)])
    except _Misread:
        raise
    except Unusable as error:  # the worker knows the list alone
        raise Unusable(str(error), await to_thread.run_sync(_damaged, items)) from error
    return replace(done, values=done.values[0])


def cutting(*models: Any) -> Work:
    """Cuts rows (text, tokens) to so many tokens, as a reranker's tokenizer makes them.

    Args:
        models: the reranker, for each lane of the worker: a tokenizer keeps the lengths of its last call.
    """
    model, *others = models

    def run(rows: Sequence[tuple[str, int]]) -> np.ndarray:
        made = np.empty(len(rows), dtype=object)
        for n, (text, tokens) in enumerate(rows):
            made[n] = shortened(text, model.body.tokenizer, tokens) or text[:1]
        return made

    return Work("cut", lambda row: "", lambda row: len(row[0]) // 4 + 1, run, tuple(cutting(each) for each in others))


async def cut(work: Score, model: Any, items: Sequence[Item], tokens: int) -> list[Item]:
    """Items with at most so many tokens of text each; `work` hands rows of `cutting` to the worker."""
    # A token is at least a byte. What the model cuts anyway may as well be left whole.
    long = {n: item for n, item in enumerate(items) if len(item.text.encode("utf-8", "replace")) > tokens}
    if not long or tokens >= int(model.body.model.max_seq_length):
        return list(items)
    done = await work([(item.text, tokens) for item in long.values()])
    texts = dict(zip(long, done.values, strict=True))
    return [replace(item, text=texts.get(n, item.text)) for n, item in enumerate(items)]


def _damaged(items: Sequence[Item]) -> int | None:
    for n, item in enumerate(items):
        try:
            for picture in item.pictures:
                open_picture(picture)
        except BadMedia:
            return n
    return None


def queued(fused: Fused, score: Score) -> Fused:
    """The same use of the same reranker, which waits for the worker: it is called from a thread of `to_thread`."""
    kind = _Pairs if isinstance(fused.reranker, Reranker) else _Lists
    return replace(fused, reranker=kind(fused.reranker, score))


class _Queued:
    def __init__(self, model: Any, score: Score):
        self.fingerprint, self._model, self._score = model.fingerprint, model, score

    def _wait(self, work: Callable[..., Coroutine[Any, Any, Done]], *about: Any) -> np.ndarray:
        try:
            return from_thread.run(work, *about).values
        except Unusable as error:  # the query has been read before: this is about an item of the index
            raise RuntimeError(f"an item of the index cannot be reranked: {error}") from error


class _Pairs(_Queued):
    def score_pairs(self, pairs: Sequence[Pair], *, progress: str = "") -> np.ndarray:
        """As `Scorer.score_pairs`."""
        return self._wait(self._score, pairs)


class _Lists(_Queued):
    def score_lists(self, queries: Sequence[Item], lists: Sequence[Sequence[Item]], *, progress: str = "") -> list[np.ndarray]:
        """As `ListScorer.score_lists`."""
        return [self._wait(scored, self._score, self._model, query, items) for query, items in zip(queries, lists, strict=True)]
