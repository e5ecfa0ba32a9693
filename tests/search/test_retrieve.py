"""retrieve: the same ids in the same order as sorting exact products, whatever the ties, blocks and exclusions."""

import math
import sys

import numpy as np
import pytest
import vectors
from hypothesis import given
from hypothesis import strategies as st
from vectors import quantised, unit

from hardwon.errors import DataError, ModelError
from hardwon.search import Found, retrieve
from hardwon.search.retrieve import MOST_EXCLUDED, SPARE, checked, nearest_below

MODULE = sys.modules["hardwon.search.retrieve"]  # the package exports a function of the same name


def gaussian(count, width, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((count, width)))


def oracle(queries, corpus, k, exclude=None):
    """Exactly rounded products, sorted by (score, id): no faiss, no matrix product, no over-fetching."""
    rows = []
    for n, query in enumerate(queries):
        left = set(range(len(corpus))) - set(() if exclude is None else exclude[n])
        products = {i: np.float32(math.fsum(query.astype(np.float64) * corpus[i].astype(np.float64))) for i in left}
        rows.append(sorted(left, key=lambda i, products=products: (-products[i], i))[:k])
    return rows


def ids_of(found):
    """Ids without padding, which may stand at the end only."""
    rows = [[int(i) for i in row if i >= 0] for row in found.ids]
    for row, ids, scores in zip(rows, found.ids, found.scores, strict=True):
        assert (ids[len(row) :] == -1).all() and (scores[len(row) :] == -np.inf).all()
        assert np.isfinite(scores[: len(row)]).all() and (np.diff(scores[: len(row)]) <= 0).all()
    return rows


def same(a, b):
    return np.array_equal(a.ids, b.ids) and np.array_equal(a.scores, b.scores)


@given(
    count=st.integers(1, 90),
    width=st.integers(1, 9),
    levels=st.integers(1, 3),
    k=st.integers(1, 100),
    seed=st.integers(0, 2**32 - 1),
    block=st.integers(1, 7),
    excluded=st.none() | st.integers(0, 90),
)
def test_equals_the_oracle_under_ties_and_exclusions(count, width, levels, k, seed, block, excluded):
    corpus, queries = quantised(count, width, levels, seed), quantised(5, width, levels, seed + 1)
    exclude = None
    if excluded is not None:
        generator = np.random.default_rng(seed)
        exclude = [generator.integers(0, count, min(excluded, count) if n else 0).tolist() for n in range(5)]  # with repeats
    found = retrieve(queries, corpus, k, exclude=exclude, block=block)
    assert found.ids.shape == found.scores.shape == (5, k)
    assert ids_of(found) == oracle(queries, corpus, k, exclude)


@given(
    count=st.integers(1, 90),
    levels=st.integers(1, 3),
    k=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
    ceiling=st.none() | st.sampled_from([-2.0, 0.0, 0.3, 0.9]) | st.integers(0, 89),
    at_once=st.sampled_from([1, 40, 2**22]),
)
def test_below_a_ceiling_it_is_the_nearest_of_those_that_lie_there(count, levels, k, seed, ceiling, at_once):
    """A whole number is a place: the ceiling is that product itself, which lies at it and so is left out, with its ties."""
    corpus, queries = quantised(count, 4, levels, seed), quantised(5, 4, levels, seed + 1)
    whole = retrieve(queries, corpus, count)
    if isinstance(ceiling, int):
        ceiling = float(whole.scores[0, min(ceiling, count - 1)])
    exclude = [[0] if n else [] for n in range(5)]
    expected = [
        [i for i in row if ceiling is None or whole.scores[n][whole.ids[n].tolist().index(i)] < np.float64(ceiling)][:k]
        for n, row in enumerate(oracle(queries, corpus, count, exclude))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "FETCHED_AT_ONCE", at_once)
        found = nearest_below(*checked(queries, corpus), k, ceiling, exclude=exclude)
    assert found.ids.shape == found.scores.shape == (5, k)
    assert ids_of(found) == expected


@given(count=st.integers(60, 200), width=st.integers(1, 40), k=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_equals_the_oracle_when_only_a_part_is_fetched(count, width, k, seed):
    corpus, queries = gaussian(count, width, seed), gaussian(3, width, seed + 1)
    assert ids_of(retrieve(queries, corpus, k)) == oracle(queries, corpus, k)


@pytest.mark.parametrize("k", [1, 4, 5, 6, 50])
def test_lowest_ids_win_where_a_group_of_ties_crosses_the_kth_place(k):
    near, far = unit([[1.0, 0.1, 0.0]]), unit([[1.0, 2.0, 0.0]])
    corpus = np.concatenate([far.repeat(3, 0), near.repeat(2, 0), far.repeat(400, 0)])  # 403 ties below two
    found = retrieve(unit([[1.0, 0.0, 0.0]]), corpus, k)
    assert found.ids[0].tolist() == [3, 4, *range(3), *range(5, 405)][:k]


def test_a_collapsed_model_gives_the_first_ids():
    corpus = gaussian(1, 16).repeat(500, 0)
    found = retrieve(corpus[:3], corpus, 7, exclude=[(0, 1), (), (3,)])
    assert found.ids.tolist() == [list(range(2, 9)), list(range(7)), [0, 1, 2, 4, 5, 6, 7]]


def test_candidates_closer_than_float32_can_tell_are_ordered_by_their_exact_products():
    base = gaussian(1, 512)[0]
    generator = np.random.default_rng(3)
    corpus = base[None].repeat(300, 0)
    places = generator.integers(0, 512, 300)
    corpus[np.arange(300), places] = np.nextafter(corpus[np.arange(300), places], np.float32(2))  # one unit in the last place
    assert ids_of(retrieve(gaussian(4, 512, 5), corpus, 20)) == oracle(gaussian(4, 512, 5), corpus, 20)


def test_neither_block_nor_company_changes_a_result():
    corpus, queries = gaussian(700, 96, 1), gaussian(41, 96, 2)
    whole = retrieve(queries, corpus, 9)
    for block in (1, 2, 19, 20, 21, 40, 41, 10_000):  # faiss changes its algorithm at 20 queries
        assert same(retrieve(queries, corpus, 9, block=block), whole)
    alone = retrieve(queries[17:18], corpus, 9)
    assert np.array_equal(alone.ids[0], whole.ids[17]) and np.array_equal(alone.scores[0], whole.scores[17])


@pytest.mark.parametrize("parts", range(1, 9))
def test_merged_parts_equal_the_whole(parts):
    for seed in range(3):
        assert vectors.parts_equal_the_whole(parts, seed)


def test_the_whole_corpus_is_looked_through_only_where_the_kth_place_is_in_doubt(monkeypatch):
    asked = []
    original = MODULE._within_reach
    monkeypatch.setattr(MODULE, "_within_reach", lambda query, *rest: asked.append(query) or original(query, *rest))
    corpus = gaussian(2000, 32)
    retrieve(corpus[:50], corpus, 10)
    assert not asked
    retrieve(corpus[:50], np.concatenate([corpus, corpus[7:8].repeat(SPARE + 20, 0)]), 10)
    assert any(np.array_equal(query, corpus[7]) for query in asked)


def test_more_exclusions_than_are_fetched_for():
    corpus, queries = gaussian(2 * MOST_EXCLUDED, 8), gaussian(2, 8, 1)
    order = np.argsort(-(corpus.astype(np.float64) @ queries[0].astype(np.float64)))
    exclude = [order[: MOST_EXCLUDED + 500].tolist(), []]
    found = retrieve(queries, corpus, 5, exclude=exclude)
    assert found.ids[0].tolist() == order[MOST_EXCLUDED + 500 :][:5].tolist()


def test_everything_excluded_leaves_padding_only():
    corpus = gaussian(4, 3)
    found = retrieve(corpus[:2], corpus, 3, exclude=[range(4), {0, 1, 2}])
    assert found.ids.tolist() == [[-1, -1, -1], [3, -1, -1]]
    assert found.scores[0].tolist() == [-np.inf] * 3


def test_no_queries_and_scores_are_cosines():
    corpus = gaussian(5, 4)
    empty = retrieve(np.zeros((0, 4), np.float32), corpus, 2)
    assert empty.ids.shape == empty.scores.shape == (0, 2)
    found = retrieve(corpus, corpus, 1)
    assert found.ids[:, 0].tolist() == list(range(5))
    np.testing.assert_allclose(found.scores[:, 0], 1, atol=1e-6)
    assert found.ids.dtype == np.int64 and found.scores.dtype == np.float32


def test_other_precisions_layouts_and_read_only_arrays():
    corpus, queries = gaussian(40, 6), gaussian(3, 6, 1)
    corpus.setflags(write=False)
    expected = retrieve(queries, corpus, 4)
    assert same(retrieve(queries.astype(np.float64), np.asfortranarray(corpus), 4), expected)
    assert same(retrieve(queries, np.repeat(corpus, 2, axis=0)[::2], 4), expected)
    assert retrieve(unit(queries).astype(np.float16), corpus, 4).ids.shape == (3, 4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "is not finite"),
        (np.inf, "is not finite"),
        (-np.inf, "is not finite"),
        (0.0, "has length 0, not 1"),
        (2.0, "has length 2, not 1"),
        (1.002, r"has length 1\.002, not 1"),
        (1e30, "has length inf, not 1"),
    ],
)
def test_bad_vectors_are_refused_by_name(value, message):
    good, bad = gaussian(4, 3), gaussian(4, 3)
    bad[2] = [value, 0, 0]
    with pytest.raises(ModelError, match=rf"query vector 2 {message}.*\(1 of 4 vectors are bad\)"):
        retrieve(bad, good, 1)
    with pytest.raises(ModelError, match=f"corpus vector 2 {message}"):
        retrieve(good, bad, 1)


def test_almost_unit_vectors_are_taken():
    assert retrieve(gaussian(2, 3) * np.float32(1.0005), gaussian(2, 3) * np.float32(0.9995), 1).ids.shape == (2, 1)


def test_bad_arguments_are_refused():
    vectors = gaussian(3, 4)
    with pytest.raises(DataError, match="k must be at least 1, got 0"):
        retrieve(vectors, vectors, 0)
    with pytest.raises(DataError, match="block must be at least 1, got -2"):
        retrieve(vectors, vectors, 1, block=-2)
    with pytest.raises(DataError, match="corpus is empty"):
        retrieve(vectors, vectors[:0], 1)
    with pytest.raises(ModelError, match="queries have 4 numbers each, corpus vectors 5: encode both with the same model"):
        retrieve(vectors, gaussian(3, 5), 1)
    with pytest.raises(DataError, match="exclude has 2 entries for 3 queries"):
        retrieve(vectors, vectors, 1, exclude=[[], []])
    for wrong in (3, -1):
        with pytest.raises(DataError, match=f"exclude of query 1 names id {wrong}: ids go from 0 to 2"):
            retrieve(vectors, vectors, 1, exclude=[[], [0, wrong], []])


def test_found_is_frozen():
    found = Found(np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32))
    with pytest.raises(AttributeError):
        found.ids = found.ids  # type: ignore[misc]


def test_large_blocks_are_proposed_by_the_quicker_way_with_the_same_result(monkeypatch):
    rng = np.random.default_rng(0)
    corpus = rng.standard_normal((3000, 32)).astype(np.float32)
    corpus[100:200] = corpus[0]  # copies, so that ties reach beyond what is fetched
    queries = np.concatenate([corpus[:40], rng.standard_normal((2 * MODULE.LARGE, 32)).astype(np.float32)])
    corpus, queries = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (corpus, queries))
    monkeypatch.setattr(MODULE, "_paces", {})
    ways, by_faiss = [], MODULE._by_faiss
    monkeypatch.setattr(MODULE, "_by_faiss", lambda *given: ways.append(len(given[0])) or by_faiss(*given))
    large, small = (retrieve(queries, corpus, 20, block=block) for block in (MODULE.LARGE, 100))
    assert ways == [MODULE.LARGE]  # the second large block; small ones never
    assert np.array_equal(large.ids, small.ids) and np.array_equal(large.scores, small.scores)
    # As mining does: a call for each block. What was learned is remembered, and the quicker way is taken.
    (paces,) = MODULE._paces.values()
    for quick, slow, asked in (("products", "faiss", 1), ("faiss", "products", 2)):
        paces |= {quick: 0.0, slow: 1e9}
        retrieve(queries[: MODULE.LARGE], corpus, 20)
        assert len(ways) == asked
