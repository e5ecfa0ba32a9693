"""Unit vectors that tie, and the whole of a search against the sum of its parts."""

import itertools

import numpy as np

from hardwon.search import retrieve


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def quantised(count, width, levels, seed):
    """Few distinct vectors, so that whole groups of candidates tie; copies stand far apart."""
    rows = np.random.default_rng(seed).integers(-levels, levels + 1, (count, width))
    rows[~rows.any(axis=1), 0] = 1
    return unit(rows)


def parts_equal_the_whole(parts, seed):
    """Whether the best of several parts of a corpus full of ties, merged by score and id, are the best of the whole."""
    corpus, queries, k = quantised(230, 3, 2, seed=2 * seed), quantised(6, 3, 2, seed=2 * seed + 1), 11
    whole = retrieve(queries, corpus, k)
    cuts = np.sort(np.random.default_rng(seed).choice(np.arange(1, len(corpus)), parts - 1, replace=False))
    bounds = [0, *cuts.tolist(), len(corpus)]
    merged = [retrieve(queries, corpus[a:b], k) for a, b in itertools.pairwise(bounds)]
    ids = np.concatenate([np.where(f.ids < 0, 10**6, f.ids + a) for f, a in zip(merged, bounds[:-1], strict=True)], axis=1)
    scores = np.concatenate([f.scores for f in merged], axis=1)
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    same = np.array_equal(np.take_along_axis(ids, order, 1), whole.ids)
    return same and np.array_equal(np.take_along_axis(scores, order, 1), whole.scores)
