import collections
import hashlib

import numpy as np
import pytest

from hardwon.evaluation import evaluate, learn_weight
from hardwon.evaluation.fusion import WEIGHTS
from hardwon.search import Fused


class Judge:
    """Log-odds by `rule(query, item)`; counts how often each pair was scored, and keeps what was shown meanwhile."""

    fingerprint = "judge"

    def __init__(self, rule):
        self.rule, self.count, self.progress = rule, collections.Counter(), []

    def score_pairs(self, pairs, *, progress=""):
        self.progress.append(progress)
        self.count.update((query.key, item.key) for query, item in pairs)
        return np.array([self.rule(query, item) for query, item in pairs], dtype=np.float32)


def perfect(query, item):
    """Texts "query 3" and "entry 3" belong together."""
    return 5.0 if query.text.split()[-1] == item.text.split()[-1] else -5.0


def wrong(query, item):
    return -perfect(query, item)


def at_random(query, item):
    return int(hashlib.sha256((query.key + item.key).encode()).hexdigest()[:6], 16) / 2**23 - 1


@pytest.fixture
def good(fake, make_task, benchmark_of):
    """An encoder whose best hit is always right, and a benchmark of two tasks that share items."""
    tasks = make_task("one", 20, 20), make_task("two", 10, 20, meta_task="vqa")
    encoder = fake(dim=16)
    for task in tasks:
        for query, gold in zip(task.queries, task.gold, strict=True):
            encoder.vectors[query.key] = encoder.random(task.corpus[gold[0]])
    return encoder, benchmark_of(*tasks)


def test_a_reranker_of_no_use_gets_weight_zero(good):
    encoder, benchmark = good
    for rule in (at_random, wrong, lambda query, item: 0.0):
        learned = learn_weight(encoder, Judge(rule), benchmark, depth=5)
        assert learned.fused.weight == 0.0
        assert dict(learned.tried)[0.0] == 1.0


def test_of_equals_the_smallest(good):
    """A perfect reranker on a perfect encoder changes nothing at any weight."""
    encoder, benchmark = good
    learned = learn_weight(encoder, Judge(perfect), benchmark, depth=5, weights=(0.4, 0.1, 0.2))
    assert learned.tried == ((0.1, 1.0), (0.2, 1.0), (0.4, 1.0))
    assert learned.fused.weight == 0.1


def test_a_perfect_reranker_gets_a_weight_that_helps(fake, make_task, benchmark_of):
    encoder, benchmark = fake(dim=16), benchmark_of(make_task("one", 30, 30))
    judge = Judge(perfect)
    learned = learn_weight(encoder, judge, benchmark, depth=30)
    tried = dict(learned.tried)
    assert learned.fused.weight > 0
    assert tried[learned.fused.weight] == max(tried.values()) > tried[0.0] + 0.3
    assert tuple(tried) == WEIGHTS
    # What was learned is what evaluation gives.
    assert evaluate(encoder, benchmark, rerank=learned.fused, progress=False).mean().mean == tried[learned.fused.weight]
    assert evaluate(encoder, benchmark, progress=False).mean().mean == tried[0.0]
    assert (learned.fused.reranker, learned.fused.depth) == (judge, 30)


def test_each_item_is_encoded_and_each_pair_scored_once(good):
    encoder, benchmark = good
    judge = Judge(at_random)
    learn_weight(encoder, judge, benchmark, depth=4)
    encoded = collections.Counter(key for call in encoder.calls for key in call)
    assert set(encoded.values()) == {1}
    assert set(judge.count.values()) == {1}
    assert len(judge.count) == 20 * 4  # the ten queries of the second task are ten of the first's, on the same corpus


def test_only_the_first_weight_shows_progress(good, capsys):
    encoder, benchmark = good
    judge = Judge(at_random)
    learn_weight(encoder, judge, benchmark, depth=2)
    assert capsys.readouterr().err.count("encoding tiny") == 1
    assert judge.progress[:2] == ["reranking two", "reranking one"]
    assert set(judge.progress[2:]) <= {""}


def test_the_fused_reranker_is_the_one_given(good):
    encoder, benchmark = good
    judge = Judge(perfect)
    assert learn_weight(encoder, judge, benchmark, depth=3).fused == Fused(judge, 3, 0.0)
