import numpy as np
import pytest

from hardwon.items import Item
from hardwon.search import Fused, Index
from hardwon.search.index import Rescorer


class Words:
    """Log-odds by the words of a pair; remembers what it was asked."""

    fingerprint = "words"

    def __init__(self, odds):
        self.odds, self.asked, self.progress = odds, [], []

    def score_pairs(self, pairs, *, progress=""):
        self.asked += [(query.text, item.text) for query, item in pairs]
        self.progress.append(progress)
        return np.array([self.odds.get((q.text, i.text), 0.0) for q, i in pairs], dtype=np.float32)


def items(*texts):
    return [Item(text=text) for text in texts]


def test_scores_are_cosine_plus_weighted_odds():
    judge = Words({("q", "b"): 4.0, ("r", "a"): -2.0})
    scores = np.array([[0.9, 0.5], [0.3, 0.2]], dtype=np.float32)
    made = Fused(judge, depth=2, weight=0.1).rescore(items("q", "r"), [items("a", "b"), items("c", "a")], scores, progress="p")
    assert made.shape == scores.shape
    assert made == pytest.approx(np.array([[0.9, 0.9], [0.3, 0.0]]), abs=1e-6)
    assert judge.asked == [("q", "a"), ("q", "b"), ("r", "c"), ("r", "a")]  # each row its own query
    assert judge.progress == ["p"]
    assert scores == pytest.approx(np.array([[0.9, 0.5], [0.3, 0.2]]))  # what was handed over is left as it was


def test_weight_zero_leaves_the_order_alone():
    scores = np.array([[0.9, 0.5]], dtype=np.float32)
    made = Fused(Words({("q", "b"): 50.0}), weight=0.0).rescore(items("q"), [items("a", "b")], scores)
    assert (made == scores).all()


def test_rows_of_another_number_than_queries_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        Fused(Words({})).rescore(items("q", "r"), [items("a")], np.zeros((2, 1), dtype=np.float32))


def test_it_is_what_an_index_takes():
    class Circle:
        fingerprint, dim = "circle", 2

        def encode(self, items, *, progress=""):
            angles = np.deg2rad([0.0 if item.text == "q" else 10.0 * ord(item.text) - 970 for item in items])
            return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    index = Index.build(Circle(), items("a", "b", "c", "d"), progress="")
    assert [hit.item.text for hit in index.search(Item(text="q"))] == ["a", "b", "c", "d"]
    judge = Words({("q", "c"): 5.0, ("q", "d"): 90.0})
    fused = Fused(judge, depth=3, weight=1.0)
    assert isinstance(fused, Rescorer)
    assert [hit.item.text for hit in index.search(Item(text="q"), rerank=fused)] == ["c", "a", "b", "d"]
    assert {item for _, item in judge.asked} == {"a", "b", "c"}  # not beyond its depth
