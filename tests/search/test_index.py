"""Index: one vector per item, one encoder per index, hits in the order of `retrieve` or of the reranker."""

import shutil
from dataclasses import dataclass, field

import numpy as np
import pytest
from fakes import FakeEncoder
from hypothesis import given
from hypothesis import strategies as st

from hardwon.errors import ArtifactError, DataError, ModelError
from hardwon.items import Item
from hardwon.search import Index, retrieve


@dataclass
class Reverse:
    """Gives the candidates it sees the opposite order; keeps what it was shown."""

    depth: int
    seen: list = field(default_factory=list)

    def rescore(self, queries, items, scores, *, progress):
        assert scores.shape == (len(queries), len(items[0])) and all(len(row) == len(items[0]) for row in items)
        self.seen.append((list(queries), [list(row) for row in items], scores.copy(), progress))
        return np.tile(np.arange(scores.shape[1], dtype=np.float32), (len(queries), 1))


@dataclass
class Returns:
    """Gives the same answer whatever it sees."""

    depth: int
    answer: np.ndarray

    def rescore(self, queries, items, scores, *, progress):
        return self.answer


def texts(count, start=0):
    return [Item(text=f"text {n}") for n in range(start, start + count)]


def ids(hits):
    return [hit.id for hit in hits]


# Building and searching


def test_hits_are_those_of_retrieve_with_ranks_from_one():
    encoder, items, queries = FakeEncoder(), texts(30), texts(3, start=100)
    index = Index.build(encoder, items)
    found = retrieve(encoder.encode(queries), index.vectors, 7)
    for row, hits in enumerate(index.search_many(queries, 7)):
        assert ids(hits) == found.ids[row].tolist()
        assert [hit.score for hit in hits] == found.scores[row].tolist()
        assert [hit.rank for hit in hits] == list(range(1, 8))
        assert [hit.item for hit in hits] == [items[n] for n in ids(hits)]
    assert index.search(queries[1], 7) == index.search_many(queries, 7)[1]
    assert index.search_many([]) == []
    assert len(index.search(queries[0])) == 10
    with pytest.raises(AttributeError):
        hits[0].rank = 2  # frozen


def test_identical_items_are_encoded_and_stored_once(pictures, tmp_path):
    copy = tmp_path / "copy.png"
    shutil.copy(pictures[0], copy)
    items = [*texts(2), Item(images=(pictures[0],)), *texts(2), Item(images=(copy,)), Item("text 0", instruction="other")]
    encoder = FakeEncoder()
    index = Index.build(encoder, items)
    assert index.items == (items[0], items[1], items[2], items[6])
    assert encoder.asked == [[item.key for item in index.items]]
    assert len(index) == len(index.vectors) == 4


@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.integers(0, 15), st.integers(1, 50))
def test_against_a_dictionary(numbers, query, k):
    encoder = FakeEncoder()
    index = Index.build(encoder, [Item(text=str(n)) for n in numbers], progress="")
    model = dict.fromkeys(Item(text=str(n)) for n in numbers)
    assert index.items == tuple(model)
    hits = index.search(Item(text=str(query)), k)
    assert len(hits) == len(set(ids(hits))) == min(k, len(model))
    if query in numbers:
        assert hits[0].item == Item(text=str(query)) and hits[0].score == pytest.approx(1)


def test_words_pictures_and_both_find_themselves(mixed):
    index = Index.build(FakeEncoder(), mixed)
    assert [index.search(item, 1)[0].id for item in mixed] == [0, 1, 2, 3, 4]


def test_exclude_self_leaves_out_all_that_shows_the_same(mixed, pictures, tmp_path):
    copy = tmp_path / "copy.png"
    shutil.copy(pictures[0], copy)
    index = Index.build(FakeEncoder(), [*mixed, Item(images=(pictures[0],), instruction="other")])
    query = Item(images=(copy,), instruction="search")
    assert sorted(ids(index.search(query))) == [0, 1, 2, 3, 4, 5]
    assert sorted(ids(index.search(query, exclude_self=True))) == [0, 2, 3, 4]
    assert sorted(ids(index.search(Item(text="new"), exclude_self=True))) == [0, 1, 2, 3, 4, 5]


def test_progress_is_named_where_the_caller_named_it():
    encoder, rerank = FakeEncoder(), Reverse(2)
    index = Index.build(encoder, texts(3))
    index.search(texts(1)[0])
    index.search(texts(1)[0], rerank=rerank, progress="searching")
    assert encoder.named == ["indexing", "", "searching"] and rerank.seen[0][3] == "searching"


def test_vectors_cannot_be_changed_and_the_array_of_the_encoder_can():
    class Keeps(FakeEncoder):
        def encode(self, items, *, progress=""):
            self.kept = super().encode(items, progress=progress)
            return self.kept

    encoder = Keeps()
    index = Index.build(encoder, texts(3))
    with pytest.raises(ValueError, match="read-only"):
        index.vectors[0, 0] = 0
    assert encoder.kept.flags.writeable


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(k):
    with pytest.raises(DataError, match=f"k must be at least 1, got {k}"):
        Index.build(FakeEncoder(), texts(3)).search(Item("x"), k, rerank=Reverse(2))


def test_nothing_to_index():
    with pytest.raises(DataError, match="no items to index"):
        Index.build(FakeEncoder(), [])


@pytest.mark.parametrize(
    ("vector", "message"),
    [([np.nan] * 12, "is not finite"), ([0.0] * 12, "length 0, not 1"), ([1.0] * 12, r"length 3\.464, not 1")],
)
def test_bad_vectors_are_refused_and_name_the_item(vector, message):
    encoder = FakeEncoder(given={"text 1": vector})
    with pytest.raises(ModelError, match=rf"item {Item('text 1').key[:12]} \('text 1', 0 pictures\).*{message}"):
        Index.build(encoder, texts(3))
    index = Index.build(encoder, texts(1))
    before = index.vectors.copy()
    with pytest.raises(ModelError, match=message):
        index.search(Item("text 1"))
    assert np.array_equal(index.vectors, before)


def test_vectors_of_the_wrong_shape_are_refused():
    class Short(FakeEncoder):
        def encode(self, items, *, progress=""):
            return super().encode(items, progress=progress)[:-1]

    with pytest.raises(ModelError, match=r"shape \[2, 12\], not \[3, 12\]"):
        Index.build(Short(), texts(3))


def test_an_encoder_that_was_trained_since_is_refused():
    encoder = FakeEncoder()
    index = Index.build(encoder, texts(3))
    encoder.fingerprint = "fake-1 after a step"
    with pytest.raises(ArtifactError, match=r"built by encoder fake-1 .* this one is fake-1 after a step"):
        index.search(Item("q"))


# Reranking


@pytest.mark.parametrize(("depth", "k"), [(4, 10), (4, 2), (30, 5), (1, 3)])
def test_rerank_orders_the_best_and_leaves_the_rest_below(depth, k):
    encoder, query = FakeEncoder(), Item("q")
    index = Index.build(encoder, texts(20))
    plain = ids(index.search(query, 20))
    rerank = Reverse(depth)
    hits = index.search(query, k, rerank)
    reach = min(depth, 20)
    assert ids(hits) == [*plain[:reach][::-1], *plain[reach:]][:k]
    assert [hit.rank for hit in hits] == list(range(1, k + 1))
    cosines = [hit.score for hit in index.search(query, 20)]
    assert [hit.score for hit in hits] == [*range(reach - 1, -1, -1), *cosines[reach:]][:k]
    queries, items, scores, _ = rerank.seen[0]
    assert queries == [query] and items == [[index.items[n] for n in plain[:reach]]]
    assert scores[0].tolist() == cosines[:reach]


def test_equal_scores_of_rerank_keep_the_order_of_the_search():
    index = Index.build(FakeEncoder(), texts(90))
    plain = ids(index.search(Item("q"), 90))
    levels = np.random.default_rng(0).integers(0, 2, 80).astype(float)  # long enough that an unstable sort would show
    expected = [n for level in (1, 0) for n, given in zip(plain[:80], levels, strict=True) if given == level]
    assert ids(index.search(Item("q"), 90, Returns(80, levels[None]))) == [*expected, *plain[80:]]


def test_queries_with_fewer_candidates_are_reranked_apart():
    index, rerank = Index.build(FakeEncoder(), texts(5)), Reverse(5)
    queries = [Item("new"), Item("text 2"), Item("other")]
    plain = index.search_many(queries, 5, exclude_self=True)
    hits = index.search_many(queries, 5, rerank, exclude_self=True)
    assert [ids(row) for row in hits] == [ids(row)[::-1] for row in plain]
    assert [(seen[0], seen[2].shape) for seen in rerank.seen] == [([queries[0], queries[2]], (2, 5)), ([queries[1]], (1, 4))]


def test_nothing_left_to_rerank():
    rerank = Reverse(3)
    assert Index.build(FakeEncoder(), texts(1)).search(texts(1)[0], rerank=rerank, exclude_self=True) == []
    assert rerank.seen == []


def test_bad_rerankers_are_refused():
    index = Index.build(FakeEncoder(), texts(5))
    with pytest.raises(DataError, match="depth of rerank must be at least 1, got 0"):
        index.search(Item("q"), rerank=Reverse(0))
    with pytest.raises(ModelError, match=r"scores of shape \[1, 2\], asked were \[1, 3\]"):
        index.search(Item("q"), rerank=Returns(3, np.zeros((1, 2))))
    scores = np.array([[0.0, 1.0], [np.nan, 0.0]])
    with pytest.raises(ModelError, match="not finite for 1 queries, first for 'second'"):
        index.search_many([Item("first"), Item("second")], rerank=Returns(2, scores))
