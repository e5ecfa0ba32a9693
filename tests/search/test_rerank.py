import numpy as np
import pytest

from hardwon.distributed import World
from hardwon.errors import DataError, RecipeError
from hardwon.evaluation import Benchmark, Task, evaluate
from hardwon.items import Item
from hardwon.search import Budget, Fused, Hits, Index, rerank
from hardwon.search.rescore import Rescorer, rescored


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
    with pytest.raises(RecipeError, match="2 queries, candidates for 1 and scores for 2"):
        Fused(Words({})).rescore(items("q", "r"), [items("a")], np.zeros((2, 1), dtype=np.float32))
    with pytest.raises(RecipeError, match="query 0 has 1 candidates and 2 scores"):
        Fused(Words({})).rescore(items("q"), [items("a")], np.zeros((1, 2), dtype=np.float32))


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


# Gate, budget, early stop


def lists(rng, rows, width, *, levels=None):
    """Queries with candidates in the order of their cosines; with `levels` both scores take few values, so that many tie."""
    cosines = rng.uniform(-1, 1, (rows, width)) if levels is None else rng.integers(-levels, levels + 1, (rows, width)) / levels
    cosines = -np.sort(-cosines, axis=1)
    names = [items(*(f"{row}.{place}" for place in range(width))) for row in range(rows)]
    odds = rng.normal(0, 3, (rows, width)) if levels is None else rng.integers(-levels, levels + 1, (rows, width)).astype(float)
    judge = Words({(f"q{r}", f"{r}.{p}"): float(np.float32(odds[r, p])) for r in range(rows) for p in range(width)})
    return items(*(f"q{row}" for row in range(rows))), names, cosines.astype(np.float32), judge


@pytest.mark.parametrize("levels", [None, 3, 1])
@pytest.mark.parametrize("top", [1, 3, 10])
def test_stopping_early_gives_the_first_places_of_reading_everything(levels, top):
    """Against full reading of the same clipped log-odds, over weights from hardly any to decisive; many ties."""
    rng = np.random.default_rng(7)
    saved = []
    for trial in range(60):
        queries, names, cosines, judge = lists(rng, 6, int(rng.integers(1, 13)), levels=levels)
        bound = float(rng.choice([0.5, 2.0, 4.0]))
        options = {"weight": float(rng.choice([0.02, 0.1, 0.5, 3.0])), "clip": (-bound, bound), "depth": cosines.shape[1]}
        full = Fused(judge, **options).reread(queries, names, cosines)
        early = Fused(judge, **options, top=top, stride=1 + trial % 3).reread(queries, names, cosines)
        for one, other in zip(full.scores, early.scores, strict=True):
            places = np.argsort(-one, kind="stable")[:top]
            assert np.argsort(-other, kind="stable")[:top].tolist() == places.tolist()
            first = np.flatnonzero(one == one.max())  # what shares the first place shares it in both
            assert np.flatnonzero(other == other.max()).tolist() == first.tolist()
        saved.append(1 - early.read.sum() / max(1, full.read.sum()))
    assert max(saved) > 0.3 and min(saved) >= 0  # it does save


class Whole:
    """Scores of lists: the last one is best."""

    fingerprint = "whole"

    def __init__(self):
        self.shown = []

    def score_lists(self, queries, lists, *, progress=""):
        self.shown += [(query.text, [item.text for item in row]) for query, row in zip(queries, lists, strict=True)]
        return [np.arange(len(row), dtype=np.float32) for row in lists]


def test_a_reranker_of_lists_is_shown_whole_lists():
    judge, cosines = Whole(), np.array([[0.9, 0.5], [0.3, 0.2]], dtype=np.float32)
    fused = Fused(judge, depth=2, weight=1.0, budget=Budget(pairs=1.0))  # one of two queries
    found = fused.reread(items("q", "r"), [items("a", "b"), items("c", "d")], cosines)
    assert judge.shown == [("r", ["c", "d"])]
    assert found.read.tolist() == [[False, False], [True, True]]
    assert found.scores == pytest.approx(np.array([[0.9, 0.5], [0.3, 1.2]]), abs=1e-6)
    with pytest.raises(RecipeError, match="a reranker of lists says what depends on the whole list"):
        Fused(judge, top=1, clip=(0.0, 1.0))


def test_what_cannot_change_places_is_not_read():
    judge = Words({})
    cosines = np.array([[0.9, 0.5, 0.45, 0.1]], dtype=np.float32)
    fused = Fused(judge, depth=4, weight=0.1, clip=(-1.0, 1.0), top=1)  # a reading moves a score by 0.1 at most
    assert not fused.reread(items("q"), [items("a", "b", "c", "d")], cosines).read.any()
    assert judge.asked == []
    near = np.array([[0.9, 0.75, 0.45, 0.1]], dtype=np.float32)
    assert fused.reread(items("q"), [items("a", "b", "c", "d")], near).read.tolist() == [[True, True, False, False]]
    second = Fused(judge, depth=4, weight=0.1, clip=(-1.0, 1.0), top=2)  # the first is certain, the second is not
    assert second.reread(items("q"), [items("a", "b", "c", "d")], cosines).read.tolist() == [[False, True, True, False]]


def test_a_reading_ends_the_search_as_soon_as_it_decides():
    judge = Words({("q", "a"): 1.0})
    cosines = np.array([[0.9, 0.85, 0.8, 0.75]], dtype=np.float32)
    fused = Fused(judge, depth=4, weight=0.1, clip=(-1.0, 1.0), top=1, stride=1)
    found = fused.reread(items("q"), [items("a", "b", "c", "d")], cosines)
    # a is at 1.0 then; b can come to 0.95
    assert found.read.tolist() == [[True, False, False, False]]
    assert found.scores[0].argmax() == 0


@pytest.mark.parametrize("settings", [{"top": 1}, {"top": 1, "clip": (-np.inf, 1.0)}])
def test_stopping_early_without_bounds_is_refused(settings):
    with pytest.raises(RecipeError, match="stopping early needs bounds of the log-odds"):
        Fused(Words({}), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -0.1}, "weight of a reranker must be 0 or more, got -0.1"),
        ({"weight": float("nan")}, "weight of a reranker must be 0 or more"),
        ({"clip": (1.0, -1.0)}, r"clip is \(lowest, highest\)"),
        ({"top": 0, "clip": (0.0, 1.0)}, "top and stride must be at least 1, got 0 and 2"),
        ({"stride": 0}, "top and stride must be at least 1, got None and 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        Fused(Words({}), **settings)
    with pytest.raises(RecipeError, match="pairs of a budget must be 0 or more"):
        Budget(pairs=-1.0)


def test_a_budget_in_pairs_goes_to_the_smallest_margins():
    judge = Words({(f"q{n}", f"{n}.1"): 50.0 for n in range(5)})
    cosines = np.array([[0.9, 0.9 - margin] for margin in (0.3, 0.1, 0.5, 0.2, 0.4)], dtype=np.float32)
    names = [items(f"{n}.0", f"{n}.1") for n in range(5)]
    queries = items(*(f"q{n}" for n in range(5)))
    for pairs, expected in [(0.0, []), (0.39, []), (0.4, [1]), (0.9, [1, 3]), (1.2, [0, 1, 3]), (2.0, [0, 1, 2, 3, 4])]:
        found = Fused(judge, depth=2, weight=1.0, budget=Budget(pairs=pairs)).reread(queries, names, cosines)
        assert np.flatnonzero(found.read.all(axis=1)).tolist() == expected
        assert found.read.sum() == 2 * len(expected) <= 5 * pairs
        changed = np.flatnonzero(found.scores[:, 1] > found.scores[:, 0])
        assert changed.tolist() == expected
        alone = np.setdiff1d(np.arange(5), expected)
        assert (found.scores[alone] == cosines[alone]).all()  # the others keep what they have


def test_what_stopping_early_saves_pays_for_more_queries():
    judge = Words({})
    cosines = np.array([[0.9, 0.89, 0.1, 0.0]] * 4, dtype=np.float32)
    names = [items(*"abcd")] * 4
    options = {"depth": 4, "weight": 0.1, "clip": (-1.0, 1.0), "budget": Budget(pairs=2.0)}
    plain = Fused(judge, **options).reread(items(*"qrst"), names, cosines)
    assert (plain.read.sum(), plain.read.any(axis=1).sum()) == (8, 2)
    early = Fused(judge, **options, top=1).reread(items(*"qrst"), names, cosines)
    # The last could not be sure of its four: its first two are put in order with what is left.
    assert early.read.any(axis=1).tolist() == [True, True, True, True]
    assert early.read.sum() == 8


@pytest.mark.parametrize("whole", [False, True])
def test_the_budget_of_a_query_that_is_asked_alone_reaches_its_best_candidates(whole):
    """As if the depth were smaller; the rest stay behind, in the order that they have."""
    judge = Whole() if whole else Words({("q", "b"): -9.0, ("q", "c"): 5.0, ("q", "d"): 50.0})
    query, names, cosines = items("q"), [items(*"abcd")], [np.array([0.9, 0.9, 0.8, 0.7], dtype=np.float32)]
    for pairs, count in [(0.0, 0), (1.9, 0), (2.0, 2), (3.5, 3), (4.0, 4), (9.0, 4)]:
        fused = Fused(judge, depth=4, weight=1.0, budget=Budget(pairs=pairs))
        found = rescored(fused, query, names, cosines)
        assert found.read == (count,)
        (made,) = found.scores
        short = rescored(Fused(judge, depth=count, weight=1.0), query, names, cosines).scores[0] if count else np.zeros(0)
        assert made[:count].tolist() == short.tolist()
        assert np.isfinite(made).all()
        behind = made[count:]
        if 0 < count < 4:
            assert behind.max() < made[:count].min()
            assert (np.diff(behind) < 0).all()
        if count == 0:
            assert made.tolist() == cosines[0].tolist()


def test_lists_of_all_lengths_share_one_budget():
    """It goes to the smallest margins of all, however long the lists are."""
    rng = np.random.default_rng(5)
    lengths = [6, 1, 4, 2, 6, 3, 0, 5]
    near = [0.1, 0.0, 0.02, 0.3, 0.01, 0.2, 0.0, 0.03]  # margins
    names = [items(*(f"{n}.{place}" for place in range(count))) for n, count in enumerate(lengths)]
    cosines = [np.array([0.9, *(0.9 - gap - np.arange(9) / 10)][:count]) for count, gap in zip(lengths, near, strict=True)]
    queries = items(*(f"q{n}" for n in range(8)))
    judge = Words({(f"q{n}", item.text): float(rng.normal()) for n, row in enumerate(names) for item in row})
    full = rescored(Fused(judge, depth=6, weight=1.0), queries, names, cosines)
    assert full.read == (6, 0, 4, 2, 6, 3, 0, 5)
    fused = Fused(judge, depth=6, weight=1.0)
    alone = [rescored(fused, [q], [n], [c]).scores[0] for q, n, c in zip(queries, names, cosines, strict=True)]
    assert [row.tolist() for row in full.scores] == [row.tolist() for row in alone]
    # Seven queries have candidates: 17.5 pairs, of which 6 + 4 + 5 go to the smallest margins and two to the next.
    found = rescored(Fused(judge, depth=6, weight=1.0, budget=Budget(pairs=2.5)), queries, names, cosines)
    assert found.read == (2, 0, 4, 0, 6, 0, 0, 5)
    for row in (2, 4, 7):
        assert found.scores[row].tolist() == full.scores[row].tolist()
    for row in (1, 3, 5):
        assert found.scores[row].tolist() == cosines[row].tolist()


def test_a_budget_of_time_is_for_one_process(monkeypatch, world):
    """Each would spend it on other queries than the others do; that of pairs is shared: tests/evaluation."""
    index, judge = world
    task = Task("t", "retrieval", "ind", tuple(items("0")), index.items, ((0,),))
    monkeypatch.setattr(World, "current", lambda: World(0, 2))
    with pytest.raises(
        RecipeError, match="several processes share a budget of pairs only: set it in pairs, or use one process"
    ):
        evaluate(Plane(), Benchmark("b", (task,)), rerank=Fused(judge, budget=Budget(milliseconds=5.0)), progress=False)


def test_a_budget_in_milliseconds_ends_when_it_is_spent(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(rerank.time, "perf_counter", lambda: now[0])

    class Slow(Words):
        def score_pairs(self, pairs, *, progress=""):
            now[0] += 0.010 * len(pairs)
            return super().score_pairs(pairs, progress=progress)

    cosines = np.array([[0.9, 0.9 - n / 100] for n in range(40)], dtype=np.float32)
    names = [items(f"{n}.0", f"{n}.1") for n in range(40)]
    queries = items(*(f"q{n}" for n in range(40)))
    for each, expected in [(10.0, 20), (5.0, 10), (0.0, 0), (1.0, rerank.PROBE), (1000.0, 40)]:
        now[0], judge = 0.0, Slow({})
        found = Fused(judge, depth=2, budget=Budget(milliseconds=each)).reread(queries, names, cosines)
        assert found.read.all(axis=1).sum() == expected
        assert found.read[:expected].all()  # the smallest margins
        assert now[0] <= max(40 * each, rerank.PROBE * 2 * 10 * (each > 0)) / 1000 + 1e-9


def test_milliseconds_count_for_a_query_that_is_asked_alone(monkeypatch):
    """Its first two candidates tell what a pair costs; then it is read as far as the time goes."""
    now = [0.0]
    monkeypatch.setattr(rerank.time, "perf_counter", lambda: now[0])

    class Slow(Words):
        def score_pairs(self, pairs, *, progress=""):
            now[0] += 0.010 * len(pairs)
            return super().score_pairs(pairs, progress=progress)

    odds = {("q", text): float(n) for n, text in enumerate("abcdefgh")}
    query, names, cosines = items("q"), [items(*"abcdefgh")], np.linspace(0.9, 0.2, 8, dtype=np.float32)[None]
    for limit, count in [(0.0, 0), (5.0, 2), (20.0, 2), (39.0, 3), (55.0, 5), (80.0, 8), (500.0, 8)]:
        now[0] = 0.0
        found = Fused(Slow(odds), depth=8, weight=1.0, budget=Budget(milliseconds=limit)).reread(query, names, cosines)
        assert found.read.tolist() == [[n < count for n in range(8)]]
        assert 1000 * now[0] <= max(limit, 20.0 * (limit > 0)) + 1e-9
        short = Fused(Words(odds), depth=count, weight=1.0).rescore(query, [names[0][:count]], cosines[:, :count])
        np.testing.assert_array_equal(found.scores[0, :count], short[0])
        if 0 < count < 8:
            assert found.scores[0, count:].max() < found.scores[0, :count].min()
    both = Budget(pairs=3.0, milliseconds=500.0)
    assert Fused(Slow(odds), depth=8, budget=both).reread(query, names, cosines).read.sum() == 3
    both = Budget(pairs=0.0, milliseconds=500.0)
    assert not Fused(Slow(odds), depth=8, budget=both).reread(query, names, cosines).read.any()


def test_a_probe_of_many_queries_is_paid_from_their_budget(monkeypatch):
    """Lists of four, ten milliseconds a pair: eight queries are probed, and the rest of the time finishes the first ones."""
    now = [0.0]
    monkeypatch.setattr(rerank.time, "perf_counter", lambda: now[0])

    class Slow(Words):
        def score_pairs(self, pairs, *, progress=""):
            now[0] += 0.010 * len(pairs)
            return super().score_pairs(pairs, progress=progress)

    cosines = np.array([[0.9, 0.9 - n / 100, 0.1, 0.0] for n in range(20)], dtype=np.float32)
    queries, names = items(*(f"q{n}" for n in range(20))), [items(*(f"{n}.{k}" for k in range(4))) for n in range(20)]
    found = Fused(Slow({}), depth=4, weight=0.1, budget=Budget(milliseconds=10.0)).reread(queries, names, cosines)
    assert found.read.sum(axis=1).tolist() == [4, 4, *[2] * 6, *[0] * 12]  # 16 pairs of the probe and four more
    assert 1000 * now[0] == pytest.approx(200)
    assert (found.scores[8:] == cosines[8:]).all()


def test_candidates_that_need_no_order_are_not_read():
    judge = Words({})
    assert Fused(judge, weight=0.0).reread(items("q"), [items("a", "b")], np.zeros((1, 2), np.float32)).read.sum() == 0
    assert Fused(judge).reread(items("q"), [items("a")], np.zeros((1, 1), np.float32)).scores.tolist() == [[0.0]]
    assert Fused(judge).reread([], [], np.zeros((0, 3), np.float32)).scores.shape == (0, 3)
    assert judge.asked == []


# One path


class Plane:
    """Vectors at an angle of so many degrees."""

    fingerprint, dim = "plane", 2

    def encode(self, items, *, progress=""):
        angles = np.deg2rad([float(item.text) for item in items])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.fixture
def world():
    texts = [f"{angle}" for angle in (1, 7, 3, 12, 5, 30, 9, 40)]
    judge = Words({("0", "7"): 3.0, ("0", "5"): 2.0, ("0", "9"): 2.0, ("2.2", "12"): 4.0})
    return Index.build(Plane(), items(*texts), progress=""), judge


@pytest.mark.parametrize("depth", [1, 3, 6, 20])
def test_hits_reranked_later_are_those_of_the_search(world, depth):
    index, judge = world
    fused = Fused(judge, depth=depth, weight=0.01)
    for query in items("0", "2.2"):
        at_once = index.search(query, 8, fused)
        later = index.search(query, 8).rerank(fused)
        assert later == at_once
        assert (later.query, later.pairs) == (query, at_once.pairs)
        assert later.pairs == (0 if depth == 1 else min(depth, 8))
        assert [hit.rank for hit in later] == list(range(1, 9))
    assert index.search(items("0")[0], 3).pairs is None


def test_searching_and_evaluating_give_the_same_order(world):
    index, judge = world
    queries = items("0", "2.2", "33")
    fused = Fused(judge, depth=5, weight=0.01)
    for gold in range(8):
        task = Task("t", "retrieval", "ind", tuple(queries), index.items, ((gold,),) * 3)
        (result,) = evaluate(Plane(), Benchmark("b", (task,)), rerank=fused, progress=False).results
        hits = index.search_many(queries, 8, fused)
        assert result.ranks == tuple(1 + [hit.id for hit in row].index(gold) for row in hits)


def test_a_bare_reranker_is_fused_as_usual(world):
    index, judge = world
    query = items("0")[0]
    assert index.search(query, 8, judge) == index.search(query, 8, Fused(judge)) == index.search(query, 8).rerank(judge)
    task = Task("t", "retrieval", "ind", (query,), index.items, ((3,),))
    one, other = (evaluate(Plane(), Benchmark("b", (task,)), rerank=r, progress=False) for r in (judge, Fused(judge)))
    assert one.results == other.results
    assert one.made["rerank"] == other.made["rerank"]


def test_hits_are_reranked_once(world):
    index, judge = world
    hits = index.search(Item(text="0"), 4).rerank(Fused(judge))
    with pytest.raises(DataError, match="reranked before"):
        hits.rerank(Fused(judge))
    assert Hits(Item(text="0"), []).rerank(Fused(judge)) == []


def test_shuffled_and_repeated_candidates_come_out_in_the_same_order():
    """Pointwise scores do not see the order: after shuffling the collection the results are the same, ties apart."""
    rng = np.random.default_rng(3)
    texts = [f"{angle}" for angle in range(20)]
    judge = Words({("0", text): float(rng.integers(-2, 3)) for text in texts})
    fused = Fused(judge, depth=12, weight=0.05)
    plain = [(hit.item.text, hit.score) for hit in Index.build(Plane(), items(*texts)).search(Item(text="0"), 20, fused)]
    for _ in range(10):
        mixed = [str(text) for text in rng.permutation(texts + texts[:7])]  # seven of them twice
        found = [(hit.item.text, hit.score) for hit in Index.build(Plane(), items(*mixed)).search(Item(text="0"), 20, fused)]
        assert dict(found) == dict(plain)
        assert [score for _, score in found] == [score for _, score in plain]
