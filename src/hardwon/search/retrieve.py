"""The one retrieve function: mining, evaluation and serving rank through it, so they cannot disagree.

float32 proposes, float64 decides. A matrix product in float32 gives the same pair of vectors different last bits from one
batch shape to the next, so its order among near-equal candidates is an accident. Each query therefore gets a few more
candidates than were asked for, and these are scored again, pair by pair, always in the same order of additions. What
float32 may have got wrong has a bound; where candidates that were not fetched come within that bound of the k-th place
(ties, copies, a collapsed model), the whole corpus is looked through for that query.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from hardwon.errors import DataError, ModelError

UNIT_TOLERANCE = 1e-3  # how far the length of a unit vector may be from 1
SPARE = 16  # candidates fetched beyond those asked for, so that the k-th place is seldom in doubt
MOST_EXCLUDED = 1024  # more exclusions than this in one query are left to the search through the whole corpus
FETCHED_AT_ONCE = 2**22  # (query, candidate) places held at a time: 12 bytes each
PRODUCTS_AT_ONCE = 2**24  # of float32 held at a time: 64 MB
LARGE = 512  # queries of a block for which it is worth finding out which way is quicker
TOGETHER = 32  # candidates of which only the largest product is looked at, until it is among the best
RESCORED_AT_ONCE = 2**23  # numbers of the corpus in float64 held at a time: 64 MB


@dataclass(frozen=True)
class Found:
    """The nearest corpus vectors of each query, best first.

    Attributes:
        ids: positions in the corpus; -1 where a query has fewer than k candidates.
        scores: inner products (cosines) rounded from float64; -inf where the id is -1.
    """

    ids: Int64[np.ndarray, "q k"]
    scores: Float32[np.ndarray, "q k"]


# The widths of the two carry no common letter: a mismatch is answered by an error that says what to do.
def retrieve(
    queries: Float[np.ndarray, "q _"],
    corpus: Float[np.ndarray, "n _"],
    k: int,
    *,
    exclude: Sequence[Collection[int]] | None = None,
    block: int = 1024,
) -> Found:
    """The k corpus vectors with the largest inner product for each query, exactly.

    Equal scores are ordered by id, lowest first, at the k-th place as well. A score depends on its two vectors only: not
    on `block`, the other queries, the rest of the corpus or the number of threads. So the best of several parts of a
    corpus, merged by score and then by id, are the best of the whole.

    Args:
        queries: unit vectors; computed with in float32.
        corpus: unit vectors of the same width.
        k: candidates per query.
        exclude: for each query, the ids that it must not get.
        block: queries searched at a time; bounds memory.

    Raises:
        ModelError: vectors that are not finite or not of unit length (by more than 1e-3), or of two widths.
        DataError: an empty corpus, `k` or `block` below 1, or `exclude` of another length or with ids outside the corpus.
    """
    if not len(corpus):
        raise DataError("the corpus is empty: there is nothing to retrieve from")
    return nearest(*checked(queries, corpus), k, exclude=exclude, block=block)


def checked(
    queries: Float[np.ndarray, "q _"], corpus: Float[np.ndarray, "n _"]
) -> tuple[Float32[np.ndarray, "q _"], Float32[np.ndarray, "n _"]]:
    """Both as `nearest` takes them. Raises ModelError as `retrieve` does."""
    if queries.shape[1] != corpus.shape[1]:
        widths = f"queries have {queries.shape[1]} numbers each, corpus vectors {corpus.shape[1]}"
        raise ModelError(f"{widths}: encode both with the same model")
    queries, corpus = as_float32(queries), as_float32(corpus)
    check_unit(queries, lambda n: f"query vector {n}")
    check_unit(corpus, lambda n: f"corpus vector {n}")
    return queries, corpus


def nearest(
    queries: Float32[np.ndarray, "q d"],
    corpus: Float32[np.ndarray, "n d"],
    k: int,
    *,
    exclude: Sequence[Collection[int]] | None = None,
    block: int = 1024,
) -> Found:
    """`retrieve` for vectors that have been checked before (an index checks its own once, not at every search)."""
    check_positive("k", k)
    check_positive("block", block)
    barred = _barred(exclude, len(queries), len(corpus))
    ids = np.full((len(queries), k), -1, dtype=np.int64)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    fetch = min(len(corpus), k + SPARE + min(MOST_EXCLUDED, max(map(len, barred), default=0)))
    step = max(1, min(block, FETCHED_AT_ONCE // fetch))
    reach = _rounding(corpus.shape[1])
    for start in range(0, len(queries), step):
        part, own = slice(start, start + step), barred[start : start + step]
        rough, fetched = _quicker(queries[part], corpus, fetch)
        best, exact = _decide(queries[part], corpus, _without(rough, fetched, own), fetched, k)
        ids[part, : best.shape[1]], scores[part, : best.shape[1]] = best, exact
        # No candidate that was left behind scores more than this.
        unsure = ~(scores[part, -1] > rough[:, -1].astype(np.float64) + reach) if fetch < len(corpus) else ()
        for row in np.flatnonzero(unsure):
            query = queries[start + row]
            best, exact = _best(query, corpus, _within_reach(query, corpus, k, own[row]), k)
            ids[start + row], scores[start + row] = -1, -np.inf
            ids[start + row, : len(best)], scores[start + row, : len(best)] = best, exact
    return Found(ids, scores)


def nearest_below(
    queries: Float32[np.ndarray, "q d"],
    corpus: Float32[np.ndarray, "n d"],
    k: int,
    ceiling: float | None,
    *,
    exclude: Sequence[Collection[int]] | None = None,
) -> Found:
    """`nearest` among the candidates whose score lies below a ceiling; None is no ceiling.

    A query with fewer than k below it among those fetched is searched again for four times as many, until there are no more.
    """
    if ceiling is None:
        return nearest(queries, corpus, k, exclude=exclude)
    ids = np.full((len(queries), k), -1, dtype=np.int64)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    open_rows, fetch = list(range(len(queries))), min(k, len(corpus))
    while open_rows:
        step, again = max(1, FETCHED_AT_ONCE // fetch), []
        for part in (open_rows[start : start + step] for start in range(0, len(open_rows), step)):
            barred = None if exclude is None else [exclude[row] for row in part]
            found = nearest(queries[part], corpus, fetch, exclude=barred)
            # In float64, as whoever compares a score by itself does.
            fits = (found.ids >= 0) & (found.scores.astype(np.float64) < ceiling)
            for row, own, exact, fit in zip(part, found.ids, found.scores, fits, strict=True):
                count = min(k, int(fit.sum()))
                if count < k and own[-1] >= 0 and fetch < len(corpus):
                    again.append(row)
                else:
                    ids[row, :count], scores[row, :count] = own[fit][:count], exact[fit][:count]
        open_rows, fetch = again, min(4 * fetch, len(corpus))
    return Found(ids, scores)


def as_float32(vectors: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """The vectors as faiss takes them: float32, one row after the other; not copied when they are already."""
    return np.ascontiguousarray(vectors, dtype=np.float32)


def shortened(vectors: Float[np.ndarray, "n d"], dim: int) -> Float32[np.ndarray, "n _"]:
    """The first `dim` numbers of each vector, scaled to unit length again; where nothing but zeros is left, those zeros."""
    if dim == vectors.shape[1]:
        return as_float32(vectors)
    left = vectors[:, :dim]
    lengths = np.linalg.norm(left, axis=1, keepdims=True)
    return as_float32(left / np.where(lengths > 0, lengths, 1))


def check_unit(vectors: Float32[np.ndarray, "n d"], name: Callable[[int], str]) -> None:
    """Raise ModelError for the first vector that is not finite or not of unit length; `name(row)` says which it is."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    good: Bool[np.ndarray, " n"] = np.abs(lengths - 1) <= UNIT_TOLERANCE  # False for NaN
    if good.all():
        return
    row = int(np.flatnonzero(~good)[0])
    others = f" ({len(good) - int(good.sum())} of {len(good)} vectors are bad)"
    if not np.isfinite(vectors[row]).all():
        raise ModelError(f"{name(row)} is not finite{others}: the model is broken or overflows in its precision")
    raise ModelError(f"{name(row)} has length {lengths[row]:.4g}, not 1{others}: normalise the vectors")


def check_positive(name: str, value: int) -> None:
    """Raise DataError for a count below 1."""
    if value < 1:
        raise DataError(f"{name} must be at least 1, got {value}")


def _barred(exclude: Sequence[Collection[int]] | None, queries: int, corpus: int) -> list[Int64[np.ndarray, " _"]]:
    """The excluded ids of each query, sorted and distinct."""
    if exclude is None:
        return [np.empty(0, dtype=np.int64)] * queries
    if len(exclude) != queries:
        raise DataError(f"exclude has {len(exclude)} entries for {queries} queries: give one collection of ids for each")
    barred = [np.unique(np.fromiter(ids, dtype=np.int64, count=len(ids))) for ids in exclude]
    for row, ids in enumerate(barred):
        if len(ids) and not 0 <= ids[0] <= ids[-1] < corpus:
            wrong = ids[0] if ids[0] < 0 else ids[-1]
            raise DataError(f"exclude of query {row} names id {wrong}: ids go from 0 to {corpus - 1}")
    return barred


def _rounding(width: int) -> float:
    """How far the float32 product of two unit vectors can be from the true one, whatever the order of additions."""
    return 1.02 * (width + 8) * 2.0**-24


def _proposed(
    queries: Float32[np.ndarray, "q d"], corpus: Float32[np.ndarray, "n d"], fetch: int
) -> tuple[Float32[np.ndarray, "q m"], Int64[np.ndarray, "q m"]]:
    """The `fetch` largest products of each query in float32, largest first, and their ids.

    For one query faiss reads the corpus once and is as fast as memory. For several it does not use that they can share what is
    read; a matrix product does, and most of its numbers need not be looked at one by one.
    """
    if len(queries) == 1:
        return _by_faiss(queries, corpus, fetch)
    count, turned = len(queries), np.ascontiguousarray(queries.T)
    rows = max(1, PRODUCTS_AT_ONCE // count // TOGETHER) * TOGETHER
    held = np.empty((min(rows, -(-len(corpus) // TOGETHER) * TOGETHER), count), dtype=np.float32)
    best = np.full((count, fetch), -np.inf, dtype=np.float32), np.full((count, fetch), -1, dtype=np.int64)
    for start in range(0, len(corpus), rows):
        part = corpus[start : start + rows]
        groups = -(-len(part) // TOGETHER)
        products = held[: groups * TOGETHER]
        np.matmul(part, turned, out=products[: len(part)])
        products[len(part) :] = -np.inf
        best = _better(*best, products.reshape(groups, TOGETHER, count), start)
    return best


def _by_faiss(
    queries: Float32[np.ndarray, "q d"], corpus: Float32[np.ndarray, "n d"], fetch: int
) -> tuple[Float32[np.ndarray, "q m"], Int64[np.ndarray, "q m"]]:
    return faiss.knn(queries, corpus, fetch, metric=faiss.METRIC_INNER_PRODUCT)


_paces: dict[tuple[int, ...], dict[str, float]] = {}  # of this process, by size of the search: seconds a query of each way


def _quicker(
    queries: Float32[np.ndarray, "q d"], corpus: Float32[np.ndarray, "n d"], fetch: int
) -> tuple[Float32[np.ndarray, "q m"], Int64[np.ndarray, "q m"]]:
    """As `_proposed`; for a large block by the way that has been the quicker one for searches of this size.

    For 1,024 queries faiss takes 1.07 times the bare product on one processor and `_proposed` 1.5 times; on another faiss reads
    the corpus once for each query, which is ten times as slow. What comes out is the same: float64 decides. The paces outlive a
    call, since mining calls once for each block.
    """
    if len(queries) < LARGE:
        return _proposed(queries, corpus, fetch)
    ways = {"products": _proposed, "faiss": _by_faiss}
    paces = _paces.setdefault((len(corpus).bit_length(), corpus.shape[1], fetch.bit_length()), {})
    name = min(ways, key=lambda way: paces.get(way, 0.0))  # one that was never tried comes first
    clock = time.perf_counter()
    found = ways[name](queries, corpus, fetch)
    paces[name] = (time.perf_counter() - clock) / len(queries)
    return found


def _better(
    best: Float32[np.ndarray, "q m"],
    ids: Int64[np.ndarray, "q m"],
    products: Float32[np.ndarray, "groups together q"],
    start: int,
) -> tuple[Float32[np.ndarray, "q m"], Int64[np.ndarray, "q m"]]:
    """The best so far and the products of more candidates, from `start` on, as the best of both.

    The m best lie in the m groups with the largest maxima, and of these only in such as exceed the least of the best so far.
    """
    count, fetch = best.shape
    largest, most = products.max(axis=1), min(fetch, len(products))
    groups = np.argpartition(largest, len(products) - most, axis=0)[len(products) - most :].T
    wanted = np.take_along_axis(largest.T, groups, axis=1) > best[:, -1:]
    width = int(wanted.sum(axis=1).max())
    if not width:
        return best, ids
    groups = np.take_along_axis(groups, np.argsort(~wanted, axis=1, kind="stable")[:, :width], axis=1)[:, :, None]
    within = np.arange(TOGETHER)
    found = products[groups, within, np.arange(count)[:, None, None]].reshape(count, -1)
    places = (start + groups * TOGETHER + within).reshape(count, -1)
    found, places = np.concatenate([best, found], axis=1), np.concatenate([ids, places], axis=1)
    kept = np.argpartition(-found, fetch - 1, axis=1)[:, :fetch]
    best, ids = np.take_along_axis(found, kept, axis=1), np.take_along_axis(places, kept, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(ids, order, axis=1)


def _without(
    rough: Float32[np.ndarray, "q m"], fetched: Int64[np.ndarray, "q m"], barred: Sequence[Int64[np.ndarray, " _"]]
) -> Float32[np.ndarray, "q m"]:
    """The products with -inf for those of excluded ids."""
    left = rough.copy()
    for row, ids in enumerate(barred):
        if len(ids):
            left[row, np.isin(fetched[row], ids)] = -np.inf
    return left


def _decide(
    queries: Float32[np.ndarray, "q d"],
    corpus: Float32[np.ndarray, "n d"],
    rough: Float32[np.ndarray, "q m"],
    fetched: Int64[np.ndarray, "q m"],
    k: int,
) -> tuple[Int64[np.ndarray, "q _"], Float32[np.ndarray, "q _"]]:
    """The best k of what was fetched for each query, and their scores: -1 and -inf where there are no more."""
    kept = min(k, rough.shape[1])
    last = np.partition(rough, rough.shape[1] - kept, axis=1)[:, -kept].astype(np.float64)
    # What is further below the k-th than rounding explains cannot be among the best.
    wanted = (rough >= (last - 2 * _rounding(corpus.shape[1]))[:, None]) & (rough > -np.inf)
    exact = np.full(rough.shape, -np.inf, dtype=np.float32)
    for row, query in enumerate(queries):
        exact[row, wanted[row]] = _scores(query, corpus, fetched[row, wanted[row]])
    order = np.lexsort((fetched, -exact), axis=1)[:, :kept]
    best = np.take_along_axis(exact, order, axis=1)
    return np.where(best > -np.inf, np.take_along_axis(fetched, order, axis=1), -1), best


def _scores(
    query: Float32[np.ndarray, " d"], corpus: Float32[np.ndarray, "n d"], ids: Int64[np.ndarray, " m"]
) -> Float32[np.ndarray, " m"]:
    """Products and sums in float64, then rounded."""
    wide = query.astype(np.float64)
    exact = np.empty(len(ids), dtype=np.float32)
    step = max(1, RESCORED_AT_ONCE // len(query))
    for start in range(0, len(ids), step):
        # Not a matrix product: its order of additions depends on the number of rows, that of `sum` along a row does not.
        rows = corpus[ids[start : start + step]].astype(np.float64)
        exact[start : start + step] = np.multiply(rows, wide, out=rows).sum(axis=1)
    return exact


def _best(
    query: Float32[np.ndarray, " d"], corpus: Float32[np.ndarray, "n d"], ids: Int64[np.ndarray, " m"], k: int
) -> tuple[Int64[np.ndarray, " _"], Float32[np.ndarray, " _"]]:
    """The best k of `ids` and their scores."""
    exact = _scores(query, corpus, ids)
    order = np.lexsort((ids, -exact))[:k]
    return ids[order], exact[order]


def _within_reach(
    query: Float32[np.ndarray, " d"], corpus: Float32[np.ndarray, "n d"], k: int, barred: Int64[np.ndarray, " _"]
) -> Int64[np.ndarray, " _"]:
    """Every id that may belong to the best k: float32 product no further below the k-th than rounding explains."""
    rough = corpus @ query
    rough[barred] = -np.inf
    allowed = len(corpus) - len(barred)
    if allowed > k:
        last = float(np.partition(rough, len(corpus) - k)[len(corpus) - k])
        return np.flatnonzero(rough >= np.float64(last - 2 * _rounding(corpus.shape[1]))).astype(np.int64)
    return np.setdiff1d(np.arange(len(corpus), dtype=np.int64), barred, assume_unique=True)
