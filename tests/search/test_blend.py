"""The judge that weighs two opinions."""

import numpy as np
import pytest
from fakes import FakeEncoder

from hardwon.errors import DataError
from hardwon.items import Candidate, Example, Item
from hardwon.search import Blend
from hardwon.search.blend import EXAMPLES, _logistic


class Knows:
    """A reranker that knows the truth, up to a sign: "q7" belongs to "c7"."""

    fingerprint = "knows"

    def __init__(self, sign=1.0):
        self.sign, self.asked = sign, 0

    def score_pairs(self, pairs, *, progress=""):
        self.asked += len(pairs)
        return np.array([self.sign * (1.0 if q.text[1:] == c.text[1:] else -1.0) for q, c in pairs], dtype=np.float32)


def examples(n):
    return [Example(Item(text=f"q{k}"), (Candidate(Item(text=f"c{k}"), origin="gold"),), "numbers") for k in range(n)]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_it_finds_out_which_opinion_counts_and_which_way_round(sign):
    blend = Blend.fit(FakeEncoder("noise"), Knows(sign), examples(60))
    assert np.sign(blend.of_odds) == sign
    odds = blend.score_pairs([(Item(text="q3"), Item(text="c3")), (Item(text="q3"), Item(text="c4"))])
    assert odds.dtype == np.float32
    assert odds[0] > 1 > -1 > odds[1]


def test_the_border_lies_between_the_classes():
    blend = Blend.fit(FakeEncoder("noise"), Knows(), examples(60))
    right = blend.score_pairs([(Item(text=f"q{k}"), Item(text=f"c{k}")) for k in range(60)])
    wrong = blend.score_pairs([(Item(text=f"q{k}"), Item(text=f"c{k + 1}")) for k in range(59)])
    assert right.min() > 0 > wrong.max()


def test_scores_are_the_weighted_sum_of_both_opinions():
    blend = Blend(FakeEncoder("noise"), Knows(), bias=0.5, of_cosine=2.0, of_odds=3.0)
    query, item = Item(text="q1"), Item(text="c1")
    a, b = FakeEncoder("noise").encode([query, item])
    assert blend.score_pairs([(query, item)])[0] == pytest.approx(0.5 + 2.0 * float(a @ b) + 3.0, abs=1e-5)


def test_a_large_set_is_sampled_and_the_sample_is_the_same_every_time():
    one, other = Knows(), Knows()
    first = Blend.fit(FakeEncoder("noise"), one, examples(EXAMPLES + 200), depth=2)
    second = Blend.fit(FakeEncoder("noise"), other, examples(EXAMPLES + 200), depth=2)
    assert one.asked <= EXAMPLES * (1 + 2 + 1)
    assert (first.bias, first.of_cosine, first.of_odds) == (second.bias, second.of_cosine, second.of_odds)
    few = Knows()
    Blend.fit(FakeEncoder("noise"), few, examples(60), depth=2, most=10)
    assert 10 * (1 + 2) <= few.asked <= 10 * (1 + 2 + 1)


def test_the_fingerprint_names_both_models_and_the_weights():
    one = Blend(FakeEncoder("noise"), Knows(), 0.0, 1.0, 1.0)
    assert one.fingerprint != Blend(FakeEncoder("noise"), Knows(), 0.0, 1.0, 2.0).fingerprint
    assert "noise" in one.fingerprint
    assert "knows" in one.fingerprint


def test_examples_that_share_one_gold_cannot_calibrate():
    gold = Candidate(Item(text="c0"), origin="gold")
    with pytest.raises(DataError, match="no wrong candidates"):
        Blend.fit(FakeEncoder("noise"), Knows(), [Example(Item(text=f"q{k}"), (gold,), "numbers") for k in range(5)])


def test_logistic_regression_meets_its_own_condition_and_a_known_case():
    """At the optimum the weighted residuals are orthogonal to the features, but for the ridge."""
    rng = np.random.default_rng(0)
    features = np.stack([np.ones(4000), rng.normal(size=4000), rng.normal(size=4000)], axis=1)
    chance = 1 / (1 + np.exp(-(features @ np.array([0.3, 1.5, -0.7]))))
    truth = rng.random(4000) < chance
    found = np.array(_logistic(features, truth, np.ones(4000)))
    assert np.abs(found - [0.3, 1.5, -0.7]).max() < 0.15
    residual = features.T @ (1 / (1 + np.exp(-(features @ found))) - truth)
    assert np.abs(residual).max() < 4000 * 1e-3 * 2
