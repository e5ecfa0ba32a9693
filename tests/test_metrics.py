import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardwon import metrics


def ones(scores):
    return torch.ones(scores.shape, dtype=torch.bool)


def golds(*rows):
    return torch.tensor(rows, dtype=torch.bool)


# ---- an oracle that knows nothing of formulas: every order of the candidates in turn, sorted by score, averaged


def orders(scores, valid):
    """Every ranking that the scores allow, each as often as any other."""
    offered = [n for n in range(len(scores)) if valid[n]]
    return [sorted(order, key=lambda n: -scores[n]) for order in itertools.permutations(offered)]


def oracle(scores, relevance, valid, k, gains="linear"):
    found = {"hit1": [], "hit": [], "rank": [], "mrr": [], "recall": [], "ndcg": []}
    gain = [r if gains == "linear" else 2**r - 1 for r in relevance]
    ideal = sum(g / math.log2(n + 2) for n, g in enumerate(sorted(gain, reverse=True)[:k]))
    for order in orders(scores, valid):
        first = next(n for n, c in enumerate(order, start=1) if relevance[c] > 0)
        found["hit1"].append(first == 1)
        found["hit"].append(first <= k)
        found["rank"].append(first)
        found["mrr"].append(1 / first)
        found["recall"].append(sum(relevance[c] > 0 for c in order[:k]) / sum(r > 0 for r in relevance))
        found["ndcg"].append(sum(gain[c] / math.log2(n + 2) for n, c in enumerate(order[:k])) / ideal)
    mean = {name: math.fsum(values) / len(values) for name, values in found.items()}
    return mean | {"strict": float(min(found["hit1"])), "worst": max(found["rank"])}


@st.composite
def rows(draw):
    width = draw(st.integers(1, 5))
    scores = draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.25]), min_size=width, max_size=width))
    valid = draw(st.lists(st.booleans(), min_size=width, max_size=width).filter(any))
    grades = draw(st.lists(st.sampled_from([0.0, 0.0, 1.0, 2.5]), min_size=width, max_size=width))
    grades = [g if v else 0.0 for g, v in zip(grades, valid, strict=True)]
    if not any(grades):
        grades[valid.index(True)] = 1.0
    return scores, grades, valid, draw(st.integers(1, 7)), draw(st.sampled_from(["linear", "exponential"]))


@given(rows())
@settings(max_examples=300, deadline=None)
def test_every_metric_is_the_mean_over_all_orders_of_ties(row):
    scores, grades, valid, k, gains = row
    expected = oracle(scores, grades, valid, k, gains)
    s, v, r = torch.tensor([scores]), torch.tensor([valid]), torch.tensor([grades])
    s = torch.where(v, s, torch.nan)  # what is not offered may hold anything
    ranking = metrics.rank(s, r > 0, v)
    got = {
        "hit1": ranking.hit(),
        "hit": ranking.hit(k),
        "rank": ranking.rank(),
        "mrr": ranking.reciprocal_rank(),
        "recall": metrics.recall(s, r > 0, v, k),
        "ndcg": metrics.ndcg(s, r, v, k, gains=gains),
        "strict": ranking.strict_hit(),
        "worst": ranking.worst_rank().double(),
    }
    assert {name: value.item() for name, value in got.items()} == pytest.approx(expected, abs=1e-12)


def test_many_rankings_without_ties_agree_with_plain_python():
    rng = random.Random(7)
    q, c, k = 10_000, 12, 5
    scores = [rng.sample(range(100), c) for _ in range(q)]
    grades = [[rng.choice([0, 0, 1, 3]) for _ in range(c - 1)] + [2] for _ in range(q)]
    s, r = torch.tensor(scores, dtype=torch.float32), torch.tensor(grades, dtype=torch.float32)
    got = {
        "mrr": metrics.rank(s, r > 0, ones(s)).reciprocal_rank(),
        "recall": metrics.recall(s, r > 0, ones(s), k),
        "ndcg": metrics.ndcg(s, r, ones(s), k),
    }
    for row in range(q):
        order = sorted(range(c), key=lambda n: -scores[row][n])
        ranked = [grades[row][n] for n in order]
        ideal = sum(g / math.log2(n + 2) for n, g in enumerate(sorted(ranked, reverse=True)[:k]))
        assert abs(got["mrr"][row].item() - 1 / (1 + next(n for n, g in enumerate(ranked) if g))) < 1e-12
        assert abs(got["recall"][row].item() - sum(g > 0 for g in ranked[:k]) / sum(g > 0 for g in ranked)) < 1e-12
        assert abs(got["ndcg"][row].item() - sum(g / math.log2(n + 2) for n, g in enumerate(ranked[:k])) / ideal) < 1e-12


# ---- by hand


def test_a_matrix_one_can_follow_with_a_pencil():
    scores = torch.tensor([[0.9, 0.5, 0.1, 0.0], [0.5, 0.5, 0.1, 0.5], [0.1, 0.8, 0.8, 0.3]])
    gold = golds([1, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 0])
    ranking = metrics.rank(scores, gold, ones(scores))
    assert ranking.hit().tolist() == [1, 2 / 3, 0]  # two of the three that share the first place are gold
    assert ranking.strict_hit().tolist() == [1, 0, 0]
    assert ranking.rank().tolist() == [1, 4 / 3, 4]
    assert ranking.worst_rank().tolist() == [1, 2, 4]
    assert ranking.others_tied.tolist() == [0, 1, 0]
    assert ranking.chance().tolist() == [1 / 4, 2 / 4, 1 / 4]
    assert ranking.hit(3).tolist() == [1, 1, 0]


def test_any_of_several_gold_candidates_is_a_hit():
    scores = torch.tensor([[0.2, 0.9, 0.1, 0.3, 0.4]])
    ranking = metrics.rank(scores, golds([1, 1, 1, 1, 0]), ones(scores))
    assert (ranking.hit().item(), ranking.rank().item()) == (1, 1)


def test_gains_differ_only_for_graded_relevance():
    scores, graded = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[0.0, 1.0, 3.0]])
    linear = (1 / math.log2(3) + 3 / 2) / (3 + 1 / math.log2(3))
    exponential = (1 / math.log2(3) + 7 / 2) / (7 + 1 / math.log2(3))
    assert metrics.ndcg(scores, graded, ones(scores), 5).item() == pytest.approx(linear, abs=1e-15)
    assert metrics.ndcg(scores, graded, ones(scores), 5, gains="exponential").item() == pytest.approx(exponential, abs=1e-15)
    binary = (graded > 0).float()
    both = [metrics.ndcg(scores, binary, ones(scores), 5, gains=g) for g in ("linear", "exponential")]
    assert torch.equal(*both)


@given(st.integers(1, 300), st.data())
@settings(max_examples=60, deadline=None)
def test_constant_scores_get_exactly_chance(width, data):
    gold = torch.zeros(1, width, dtype=torch.bool)
    gold[0, data.draw(st.lists(st.integers(0, width - 1), min_size=1, max_size=5))] = True
    valid = gold | (torch.arange(width) % data.draw(st.integers(1, 4)) == 0)
    ranking = metrics.rank(torch.full((1, width), data.draw(st.floats(-1, 1, width=32))), gold, valid)
    assert ranking.hit().item() == ranking.chance().item() == gold.sum().item() / valid.sum().item()
    assert ranking.hit(width).item() == 1


def test_scores_that_float32_can_tell_apart_are_not_ties():
    close = torch.tensor([[1.0, 1.0 + 2**-23]])
    assert metrics.rank(close, golds([1, 0]), ones(close)).hit().item() == 0


@given(st.integers(0, 2**32), st.integers(2, 40))
@settings(max_examples=50, deadline=None)
def test_the_order_of_candidates_plays_no_part(seed, width):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (3, width), generator=generator).float()
    gold = torch.zeros(3, width, dtype=torch.bool)
    gold[:, : 1 + width // 5] = True
    order = torch.randperm(width, generator=generator)
    before, after = metrics.rank(scores, gold, ones(scores)), metrics.rank(scores[:, order], gold[:, order], ones(scores))
    for name in ("hit", "rank", "worst_rank", "reciprocal_rank", "chance"):
        assert torch.equal(getattr(before, name)(), getattr(after, name)())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused_with_their_rows(value):
    scores = torch.zeros(12, 3)
    scores[4, 1] = scores[7, 0] = value
    gold = golds(*[[1, 0, 0]] * 12)
    with pytest.raises(ValueError, match=r"scores are not finite for queries 4, 7$"):
        metrics.rank(scores, gold, ones(scores))
    with pytest.raises(ValueError, match=r"queries 4, 7$"):
        metrics.recall(scores, gold, ones(scores), 1)
    with pytest.raises(ValueError, match=r"queries 0, 1, 2, 3, 4, 5, 6, 7 \.\.\.$"):
        metrics.rank(torch.full((12, 3), value), gold, ones(scores))


def test_what_cannot_be_ranked_is_refused():
    scores = torch.zeros(2, 3)
    gold = golds([1, 0, 0], [1, 0, 0])
    with pytest.raises(ValueError, match=r"no gold candidate for queries 1$"):
        metrics.rank(scores, golds([1, 0, 0], [0, 0, 0]), ones(scores))
    with pytest.raises(ValueError, match=r"not among the candidates offered to queries 0$"):
        metrics.rank(scores, gold, golds([0, 1, 1], [1, 1, 1]))
    with pytest.raises(ValueError, match="k must be 1 or more, got 0"):
        metrics.recall(scores, gold, ones(scores), 0)
    with pytest.raises(ValueError, match="k must be 1 or more, got -1"):
        metrics.rank(scores, gold, ones(scores)).hit(-1)
    with pytest.raises(ValueError, match=r"not negative; it is not for queries 1$"):
        metrics.ndcg(scores, torch.tensor([[1.0, 0, 0], [1.0, -1, 0]]), ones(scores), 1)
    with pytest.raises(Exception, match="gains"):  # the type check under pytest comes first
        metrics.ndcg(scores, gold.float(), ones(scores), 1, gains="squared")


def test_no_queries_are_no_error():
    empty = torch.zeros(0, 3)
    ranking = metrics.rank(empty, ones(empty), ones(empty))
    assert [len(v) for v in (ranking.hit(5), ranking.rank(), ranking.reciprocal_rank())] == [0, 0, 0]


# ---- uncertainty


def values(n, seed, share=0.5):
    return (torch.rand(n, generator=torch.Generator().manual_seed(seed)) < share).double()


def test_an_interval_is_as_wide_as_theory_says():
    found = metrics.interval(values(400, 0), seed=1)
    assert found.mean == values(400, 0).mean().item()
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(400), rel=0.08)
    narrower = metrics.interval(values(400, 0), seed=1, level=0.5)
    assert narrower.high - narrower.low == pytest.approx(2 * 0.674 * 0.5 / math.sqrt(400), rel=0.12)


def test_the_same_seed_gives_the_same_digits_and_leaves_the_global_state_alone():
    state = torch.get_rng_state()
    one, two, other = (metrics.interval(values(50, 0) * torch.arange(50), seed=seed) for seed in (3, 3, 4))
    assert one == two
    assert (one.low, one.high) != (other.low, other.high)
    assert torch.equal(state, torch.get_rng_state())


def test_a_macro_mean_weighs_tasks_not_queries():
    tasks = [torch.ones(2), torch.zeros(98)]
    assert metrics.macro_interval(tasks, seed=0) == metrics.Interval(0.5, 0.5, 0.5)
    tasks = [values(20, 1), values(2000, 2)]
    found = metrics.macro_interval(tasks, seed=0)
    assert found.mean == pytest.approx((tasks[0].mean() + tasks[1].mean()).item() / 2, abs=1e-15)
    assert found.high - found.low == pytest.approx(1.96 * math.sqrt(0.25 / 20 + 0.25 / 2000), rel=0.1)


def test_blocks_of_resamples_are_all_there(monkeypatch):
    monkeypatch.setattr(metrics, "_CELLS", 70)
    found = metrics.interval(values(10, 0), draws=100, seed=0)
    assert 0 <= found.low < found.mean < found.high <= 1


def test_coverage_of_the_interval():
    inside = 0
    for seed in range(200):
        found = metrics.interval(values(150, seed, 0.3), draws=300, seed=seed)
        inside += found.low <= 0.3 <= found.high
    assert 0.91 <= inside / 200 <= 0.99


def test_a_planted_null_is_rejected_about_one_time_in_twenty():
    rejected = excluded = 0
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        a = [torch.rand(n, generator=generator, dtype=torch.float64) for n in (60, 90)]
        b = [torch.rand(n, generator=generator, dtype=torch.float64) for n in (60, 90)]
        found = metrics.paired(a, b, draws=400, seed=seed)
        rejected += found.p < 0.05
        excluded += not found.difference.low <= 0 <= found.difference.high
    assert 0.03 <= rejected / 400 <= 0.07
    assert 0.03 <= excluded / 400 <= 0.08


def test_a_difference_that_is_there_is_found():
    a, b = [values(300, 1, 0.7)], [values(300, 2, 0.3)]
    found = metrics.paired(a, b, seed=0)
    assert found.difference.low > 0
    assert found.difference.mean == pytest.approx((a[0].mean() - b[0].mean()).item(), abs=1e-12)
    assert found.p == 1 / 2001
    back = metrics.paired(b, a, seed=0)
    assert back.difference.mean == -found.difference.mean
    assert back.difference.high == pytest.approx(-found.difference.low, abs=1e-12)


def test_pairing_makes_the_interval_narrower():
    base = values(300, 1)
    better = base.clone()
    better[base.argmin()] = 1  # one query more
    found = metrics.paired([better], [base], seed=0)
    alone = metrics.interval(base, seed=0)
    assert found.difference.high - found.difference.low < (alone.high - alone.low) / 5
    assert found.p == 1


def test_p_is_exact_where_it_can_be_counted():
    # Four differences of the same sign: of 16 ways to flip, 2 are as extreme.
    found = metrics.paired([torch.ones(4)], [torch.zeros(4)], draws=20_000, seed=0)
    assert found.p == pytest.approx(2 / 16, abs=0.01)
    assert metrics.paired([torch.ones(4)], [torch.ones(4)], seed=0) == metrics.Paired(metrics.Interval(0.0, 0.0, 0.0), 1.0)


def test_what_has_no_interval_is_refused():
    with pytest.raises(ValueError, match="no mean of nothing"):
        metrics.interval(torch.zeros(0), seed=0)
    with pytest.raises(ValueError, match="no mean of nothing"):
        metrics.macro_interval([], seed=0)
    with pytest.raises(ValueError, match="not finite"):
        metrics.interval(torch.tensor([0.0, math.nan]), seed=0)
    with pytest.raises(ValueError, match="draws must be 1 or more, got 0"):
        metrics.interval(torch.zeros(2), draws=0, seed=0)
    with pytest.raises(ValueError, match=r"between 0 and 1, got 95"):
        metrics.interval(torch.zeros(2), level=95.0, seed=0)
    with pytest.raises(ValueError, match=r"not asked the same queries: \[2\] and \[3\]"):
        metrics.paired([torch.zeros(2)], [torch.zeros(3)], seed=0)


# ---- what leaderboards ask for


def test_cutoffs_agree_with_a_well_kept_library():
    """All trials: python -m benchmarks.reliability --only E7."""
    from trials import trials

    from benchmarks.reliability.evaluation import metrics_agree

    outcome = metrics_agree(trials(150), seed=1)
    assert outcome.failed == 0, outcome.found


def test_cutoffs_break_every_tie_against_the_model():
    scores = torch.tensor([[1.0, 1.0, 1.0, 0.5], [0.5, 0.25, 0.25, 0.25]])
    relevance = torch.tensor([[0.0, 3.0, 1.0, 0.0], [1.0, 0.0, 2.0, 0.0]])
    at = metrics.worst_ranks(scores, relevance, ones(scores)).at((1, 2, 3))
    assert at["hit@1"].tolist() == [0, 1]
    assert at["mrr@2"].tolist() == [0.5, 1]
    assert at["precision@3"].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert at["recall@2"].tolist() == [0.5, 0.5]
    assert at["f1@2"].tolist() == [0.5, 0.5]
    assert at["map@3"].tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, 1 / 2])
    ideal = [3 + 1 / math.log2(3), 2 + 1 / math.log2(3)]
    # Among gold ones of one score the lowest grade stands first.
    assert at["ndcg_linear@3"].tolist() == pytest.approx([(1 / math.log2(3) + 3 / 2) / ideal[0], 1 / ideal[1]])
    assert at["ndcg_exponential@3"][0] == pytest.approx((1 / math.log2(3) + 7 / 2) / (7 + 1 / math.log2(3)))


@given(rows())
@settings(max_examples=200, deadline=None)
def test_cutoffs_are_the_worst_of_all_orders_of_ties(row):
    scores, grades, valid, k, _ = row
    found = [
        (any(grades[c] > 0 for c in order[:k]), next(n for n, c in enumerate(order, 1) if grades[c] > 0))
        for order in orders(scores, valid)
    ]
    at = metrics.worst_ranks(torch.tensor([scores]), torch.tensor([grades]), torch.tensor([valid])).at((k,))
    first = max(place for _, place in found)
    assert at[f"hit@{k}"].item() == min(hit for hit, _ in found)
    assert at[f"mrr@{k}"].item() == pytest.approx(1 / first if first <= k else 0)


def test_ranks_of_several_blocks_are_those_of_all_queries():
    generator = torch.Generator().manual_seed(5)
    scores = torch.randint(0, 6, (40, 9), generator=generator).double()
    relevance = torch.randint(0, 2, (40, 9), generator=generator) * torch.randint(1, 4, (40, 9), generator=generator).double()
    relevance[:, 0] = 1
    blocks = [metrics.worst_ranks(scores[n : n + 7], relevance[n : n + 7], ones(scores[n : n + 7])) for n in range(0, 40, 7)]
    whole = metrics.worst_ranks(scores, relevance, ones(scores)).at()
    for name, values in metrics.GoldRanks.joined(blocks).at().items():
        assert torch.equal(values, whole[name]), name
    empty = torch.zeros(0, 3)
    assert all(len(values) == 0 for values in metrics.worst_ranks(empty, empty, ones(empty)).at().values())
