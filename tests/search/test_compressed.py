"""Smaller forms of vectors against arithmetic by hand, and the recall that is told of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardwon.errors import DataError
from hardwon.search import retrieve
from hardwon.search.compressed import Compressed, Form, recalls


def unit(rng, n, d):
    made = rng.normal(size=(n, d)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.fixture
def vectors():
    return unit(np.random.default_rng(0), 300, 32)


def test_whole_vectors_find_what_retrieve_finds(vectors):
    found, truth = Compressed(vectors, Form()).search(vectors[:20], 7), retrieve(vectors[:20], vectors, 7)
    np.testing.assert_array_equal(found.ids, truth.ids)
    np.testing.assert_array_equal(found.scores, truth.scores)


def test_eight_bits_against_the_codes_by_hand(vectors):
    """faiss cuts each column between its smallest and largest number into 255 steps and stands for the middle of one."""
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    codes = np.clip(np.floor((vectors - low) / (high - low) * 255), 0, 255)
    decoded = low + (codes + 0.5) / 255 * (high - low)
    found = Compressed(vectors, Form("int8")).search(vectors[:20], 10)
    scores = vectors[:20] @ decoded.T
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :10], atol=1e-4)


def test_signs_against_a_loop(vectors):
    """Of the 10 x k with the fewest different signs, the k with the largest cosine."""
    k = 3
    found = Compressed(vectors, Form("binary")).search(vectors[:15], k)
    for query, ids, scores in zip(vectors[:15], found.ids, found.scores, strict=True):
        apart = ((vectors > 0) != (query > 0)).sum(axis=1)
        sure = set(np.flatnonzero(apart < np.sort(apart)[10 * k - 1]))
        maybe = sure | set(np.flatnonzero(apart == np.sort(apart)[10 * k - 1]))
        assert set(ids) <= maybe
        best = sorted(sure, key=lambda n: -float(vectors[n] @ query))[:k]
        assert min(scores) >= min(float(vectors[n] @ query) for n in best) - 1e-6
        np.testing.assert_allclose(scores, vectors[ids] @ query, atol=1e-6)


def test_fewer_numbers_are_unit_vectors_again(vectors):
    left = vectors[:, :8] / np.linalg.norm(vectors[:, :8], axis=1, keepdims=True)
    found = Compressed(vectors, Form(dim=8)).search(vectors[:10], 5)
    np.testing.assert_array_equal(found.ids, retrieve(left[:10], left, 5).ids)


def test_whole_vectors_lose_nothing_and_what_is_lost_is_told(vectors):
    whole, coarse, few, nothing = recalls(vectors, [Form(), Form("int8"), Form(dim=16), Form("binary", 8)])
    assert (whole.value.mean, whole.value.low, whole.bytes) == (1.0, 1.0, 128)
    assert 0.9 < coarse.value.mean < 1
    assert coarse.bytes == 32
    assert few.value.low <= few.value.mean <= few.value.high < 0.7
    assert nothing.bytes == 1


def test_recall_by_hand():
    """Three copies and a stranger: a copy as near as the k-th counts as found."""
    vectors = np.eye(8, dtype=np.float32)[[0, 0, 0, 1]]
    (made,) = recalls(vectors, [Form("int8")], k=1)
    assert made.value.mean == 1.0


def test_queries_of_ones_own(vectors):
    rng = np.random.default_rng(1)
    own = unit(rng, 40, 32)
    (made,) = recalls(vectors, [Form("int8")], queries=own, k=5)
    truth, found = retrieve(own, vectors, 5).ids, Compressed(vectors, Form("int8")).search(own, 5).ids
    shares = [len(set(a) & set(b)) / 5 for a, b in zip(truth, found, strict=True)]
    assert made.value.mean == pytest.approx(np.mean(shares))


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(2, 12), d=st.sampled_from([8, 16]), k=st.integers(1, 20), kind=st.sampled_from(["float32", "int8", "binary"])
)
def test_a_query_never_finds_itself_alone(n, d, k, kind):
    vectors = unit(np.random.default_rng(n), n, d)
    (made,) = recalls(vectors, [Form(kind)], k=k)
    assert 0 <= made.value.low <= made.value.mean <= made.value.high <= 1
    assert made.value.mean == 1 or kind != "float32"


@pytest.mark.parametrize(
    ("work", "match"),
    [
        (lambda v: Form("int4"), "unknown form 'int4': did you mean 'int8'"),
        (lambda v: Form(dim=0), "dim must be at least 1"),
        (lambda v: Compressed(v, Form(dim=33)), "dim is 33, but the vectors hold 32"),
        (lambda v: Compressed(v, Form("binary", 12)), "multiple of 8, got 12"),
        (lambda v: Compressed(v, Form()).search(v, 0), "k must be at least 1"),
        (lambda v: recalls(v[:1], [Form()]), "nothing to compare"),
        (lambda v: recalls(v, [Form()], queries=v[:0]), "nothing to compare"),
    ],
)
def test_errors(vectors, work, match):
    with pytest.raises(DataError, match=match):
        work(vectors)
