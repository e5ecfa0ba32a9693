import itertools

import numpy as np
import pytest
import torch
import vlms

from hardwon.errors import DataError, ModelError
from hardwon.evaluation import order_robustness
from hardwon.evaluation.robustness import kendall
from hardwon.items import Item
from hardwon.models import Listing, ListwiseReranker

QUERIES = [Item(f"query {n}") for n in range(6)]
LISTS = [[Item(f"{n}.{place}") for place in range(7)] for n in range(6)]


class Points:
    """A score by the pair alone; few values, so that many tie."""

    fingerprint = "points"

    def score_pairs(self, pairs, *, progress=""):
        return np.array([sum(map(ord, q.text + i.text)) % 4 for q, i in pairs], dtype=np.float32)


class Places:
    """Scores of a list: so much by the item, so much by the place where it stands."""

    fingerprint = "places"

    def __init__(self, of_place):
        self.of_place = of_place

    def score_lists(self, queries, items, *, progress=""):
        return [
            np.array([(1 - self.of_place) * float(i.text.split(".")[1]) - self.of_place * n for n, i in enumerate(row)])
            for row in items
        ]


def test_pairs_are_scored_alike_in_any_order():
    found = order_robustness(Points(), QUERIES, LISTS, shuffles=5)
    assert (found.mean, found.lowest, found.shuffles, len(found.taus)) == (1.0, 1.0, 5, 6)
    repeated = [[*row, row[2], row[2]] for row in LISTS]
    assert order_robustness(Points(), QUERIES, repeated).lowest == 1.0


def test_what_looks_at_places_is_found_out():
    never, some, only = (order_robustness(Places(share), QUERIES, LISTS, shuffles=20) for share in (0.0, 0.4, 1.0))
    assert never.lowest == 1.0
    assert 0.2 < some.mean < 0.9
    assert abs(only.mean) < 0.2  # the order that comes out has nothing to do with the candidates


@pytest.fixture(scope="module")
def listwise(tmp_path_factory):
    """Reads every list whole, in one order and its turn."""
    folder = vlms.build_words(tmp_path_factory.mktemp("words") / "words")
    return ListwiseReranker.load(folder, device="cpu", listing=Listing("Best?", window=7, permutations=2))


@pytest.mark.parametrize("of_place", [0.0, 1.0])
def test_a_listwise_reranker_is_shown_places_of_other_seeds(listwise, of_place, monkeypatch):
    """It sorts candidates before it chooses their places, so that shuffling what it is handed finds out nothing."""

    def forward(lists):
        (rows,) = {len(items) for _, items in lists}
        return torch.tensor(np.stack(Places(of_place).score_lists([], [items for _, items in lists]))).float().reshape(-1, rows)

    monkeypatch.setattr(listwise, "forward", forward)
    found = order_robustness(listwise, QUERIES, LISTS, shuffles=10)
    assert found.lowest == 1.0 if of_place == 0 else abs(found.mean) < 0.3
    assert found == order_robustness(listwise, QUERIES, LISTS, shuffles=10)  # the same seeds again


def test_lone_candidates_say_nothing():
    found = order_robustness(Points(), QUERIES[:3], [LISTS[0][:1], LISTS[1], []])
    assert found.taus == (1.0,)
    with pytest.raises(DataError, match="two candidates or more"):
        order_robustness(Points(), QUERIES[:1], [LISTS[0][:1]])


def test_scores_that_cannot_be_compared_are_refused():
    class Bad:
        fingerprint = "bad"

        def __init__(self, value, more=0):
            self.value, self.more = value, more

        def score_lists(self, queries, items, *, progress=""):
            return [np.full(len(row) + self.more, self.value) for row in items]

    with pytest.raises(ModelError, match="not finite"):
        order_robustness(Bad(np.nan), QUERIES, LISTS)
    with pytest.raises(ModelError, match=r"scores for lists of \[7, 7"):
        order_robustness(Bad(0.0, 1), QUERIES, LISTS)


def test_kendall_against_counting():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.integers(0, 4, (2, 6)).astype(float)
        total = 0
        for i, j in itertools.combinations(range(6), 2):
            one, other = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
            total += 1 if one == other else (-1 if one * other < 0 else 0)
        assert kendall(a, b) == pytest.approx(total / 15)
    assert kendall(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == -1
