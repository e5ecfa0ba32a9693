import collections
import hashlib

import numpy as np
import pytest

from hardwon.errors import RecipeError
from hardwon.evaluation import evaluate, evaluate_reranking, learn_fusion, learn_weight
from hardwon.evaluation.fusion import WEIGHTS, Held, _cross_fitted
from hardwon.items import Item
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
    assert judge.progress == ["reranking tiny"]  # all pairs in one call


def test_the_fused_reranker_is_the_one_given(good):
    encoder, benchmark = good
    judge = Judge(perfect)
    assert learn_weight(encoder, judge, benchmark, depth=3).fused == Fused(judge, 3, 0.0)


# Gate


class Mixed:
    """Right about one half of the queries, wrong about the other, by their instruction."""

    fingerprint = "mixed"

    def __init__(self):
        self.asked = collections.Counter()

    def score_pairs(self, pairs, *, progress=""):
        self.asked.update(query.instruction for query, _ in pairs)
        return np.array([perfect(q, i) if q.instruction == "help" else wrong(q, i) for q, i in pairs], dtype=np.float32)


@pytest.fixture
def halves(fake, make_task, benchmark_of):
    """An encoder that is often wrong, and tasks whose queries carry instructions."""
    tasks = [
        make_task(name, 60, 60, queries=tuple(Item(text=f"query {n}", instruction=name) for n in range(60)))
        for name in ("help", "harm")
    ]
    encoder = fake(dim=64)
    rng = np.random.default_rng(0)
    for task in tasks:
        for query, gold in zip(task.queries, task.gold, strict=True):
            near = encoder.random(task.corpus[gold[0]]) + rng.normal(size=64) * 0.3
            encoder.vectors[query.key] = near / np.linalg.norm(near)
    return encoder, benchmark_of(*tasks)


@pytest.mark.parametrize("rule", [at_random, wrong, lambda query, item: 0.0])
def test_a_reranker_of_no_use_never_passes(halves, rule):
    encoder, benchmark = halves
    learned = learn_fusion(encoder, Judge(rule), benchmark, depth=5)
    assert not any(kind.passes for kind in learned.fused.gate.kinds)
    assert learned.gain.mean == learned.gain.high == 0.0
    found = evaluate_reranking(encoder, benchmark, learned.fused, progress=False)
    assert found.reranked.made["rerank"]["pairs"] == 0  # nobody is asked
    assert found.reranked.results == found.alone.results
    assert str(learned).count("never") == 2


def test_only_the_kinds_that_gain_pass(halves):
    encoder, benchmark = halves
    judge = Mixed()
    learned = learn_fusion(encoder, judge, benchmark, depth=60)
    assert {kind.instruction: kind.passes for kind in learned.fused.gate.kinds} == {"help": True, "harm": False}
    assert learned.gain.low > 0
    assert judge.asked == {"help": 3600, "harm": 3600}
    judge.asked.clear()
    found = evaluate_reranking(encoder, benchmark, learned.fused, progress=False)
    assert set(judge.asked) == {"help"}
    assert found.below == ()
    gains = {task.name: task.value for task in found.comparison.tasks}
    assert gains["help"].low > 0
    assert gains["harm"].mean == 0
    assert gains["help"].mean / 2 == pytest.approx(learned.gain.mean, abs=0.02)  # expected and found
    (kind,) = [kind for kind in learned.fused.gate.kinds if kind.passes]
    assert (kind.queries, kind.instruction) == (60, "help")
    assert f"{100 * kind.reranked:.0f} %" in str(learned)


def test_one_lucky_query_is_not_enough(fake, make_task, benchmark_of):
    """The reranker mends so many misses and does nothing else."""
    encoder, task = fake(dim=16), make_task("one", 60, 60)
    for n, (query, gold) in enumerate(zip(task.queries, task.gold, strict=True)):
        encoder.vectors[query.key] = encoder.random(task.corpus[gold[0] if n >= 8 else 59 - n])
    passing = []
    for mended in range(9):
        judge = Judge(lambda q, i, top=mended: 9.0 if int(q.text.split()[-1]) < top and perfect(q, i) > 0 else 0.0)
        learned = learn_fusion(encoder, judge, benchmark_of(task), depth=60, weights=(0.0, 1.0))
        passing.append(learned.fused.gate.kinds[0].passes)
    assert passing[:3] == [False, False, False]
    assert passing[7:] == [True, True]
    assert passing == sorted(passing)


def test_a_useless_reranker_seldom_passes_by_chance(fake, make_task, benchmark_of):
    passed = 0
    for trial in range(30):
        task = make_task("one", 60, 20, prefix=f"{trial} ")
        encoder = fake(dim=16)
        for query, gold in zip(task.queries, task.gold, strict=True):
            near = encoder.random(task.corpus[gold[0]]) + 0.2 * encoder.random(query)
            encoder.vectors[query.key] = near / np.linalg.norm(near)
        learned = learn_fusion(encoder, Judge(at_random), benchmark_of(task), depth=5)
        passed += learned.fused.gate.kinds[0].passes
    assert passed <= 3


def test_a_reranker_of_lists_is_learned_alike(halves):
    class Lists:
        fingerprint = "lists"

        def score_lists(self, queries, lists, *, progress=""):
            return [np.array([perfect(q, i) for i in row], dtype=np.float32) for q, row in zip(queries, lists, strict=True)]

    encoder, benchmark = halves
    one, other = (learn_fusion(encoder, r, benchmark, depth=20) for r in (Lists(), Judge(perfect)))
    assert (one.tried, one.gain, one.fused.gate) == (other.tried, other.gain, other.fused.gate)


def test_log_odds_are_clipped_to_what_was_seen(halves):
    encoder, benchmark = halves
    assert learn_fusion(encoder, Judge(perfect), benchmark, depth=60).fused.clip == (-5.0, 5.0)


def test_a_gate_needs_something_to_learn_from(halves):
    encoder, benchmark = halves
    for settings in ({"folds": 1}, {"level": 0.5}, {"level": 1.0}, {"weights": (0.0,)}):
        with pytest.raises(RecipeError, match="learning a gate needs folds >= 2"):
            learn_fusion(encoder, Judge(perfect), benchmark, depth=3, **settings)
    with pytest.raises(RecipeError, match="no gate to show"):
        str(learn_weight(encoder, Judge(perfect), benchmark, depth=3))


def test_gains_are_measured_on_queries_that_the_weight_was_not_learned_on():
    """Of a reranker that knows nothing, the best weight for the very queries gains by luck; cross-fitted it does not."""
    rng = np.random.default_rng(0)
    lucky, honest = [], []
    rows, weights = np.ones(60, dtype=bool), sorted(WEIGHTS)
    for _ in range(200):
        cosines = -np.sort(-rng.normal(0, 0.05, (60, 5)), axis=1)
        gold = np.eye(5, dtype=bool)[rng.choice(5, 60, p=[0.3, 0.25, 0.2, 0.15, 0.1])]
        held = Held(("t",) * 60, (Item("q"),) * 60, cosines, rng.normal(0, 1, (60, 5)), gold)
        lucky.append(max(held.hits(weight).mean() for weight in weights) - held.hits(0.0).mean())
        honest.append(_cross_fitted(held, rows, np.arange(60) % 5, weights).mean())
    assert np.mean(lucky) > 0.015
    assert np.mean(honest) < 0.0
