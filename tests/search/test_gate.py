"""Which queries are left alone."""

import json

import numpy as np
import pytest

from hardwon.errors import ArtifactError
from hardwon.items import Item
from hardwon.metrics import Interval
from hardwon.search import Budget, Fused, Gate, Kind

HELPED = Kind("find", 60, Interval(0.2, 0.1, 0.3), weight=0.5, margin=0.25, reranked=0.8)
HARMED = Kind("name", 60, Interval(0.1, -0.02, 0.2), weight=0.4, margin=1.0, reranked=1.0)
GATE = Gate((HELPED, HARMED))


class Likes:
    """Likes one candidate and counts what it is asked."""

    fingerprint = "likes"

    def __init__(self):
        self.asked = []

    def score_pairs(self, pairs, *, progress=""):
        self.asked += [query.instruction for query, _ in pairs]
        return np.array([1.0 if item.text == "b" else 0.0 for _, item in pairs], dtype=np.float32)


def test_a_query_passes_by_its_kind_and_its_margin():
    queries = [Item("q", instruction=name) for name in ("find", "find", "name", "", "find it")]
    cosines = np.array([[0.9, 0.7], [0.9, 0.6], [0.9, 0.9], [0.9, 0.9], [0.9, 0.9]])
    assert GATE.weights(queries, cosines).tolist() == [0.5, 0.0, 0.0, 0.0, 0.0]
    judge = Likes()
    made = Fused(judge, depth=2, weight=9.0, gate=GATE).reread(queries, [[Item("a"), Item("b")]] * 5, cosines)
    assert judge.asked == ["find", "find"]  # two candidates of one query
    assert made.scores[0] == pytest.approx([0.9, 1.2])
    assert (made.scores[1:] == cosines[1:]).all()
    assert made.read.tolist() == [[True, True], *[[False, False]] * 4]


@pytest.mark.parametrize(
    ("mean", "low", "passes"), [(0.1, 0.0, True), (0.0, 0.0, False), (0.1, -1e-9, False), (-0.1, -0.2, False)]
)
def test_a_kind_passes_when_it_gained_and_its_lower_bound_is_not_below_zero(mean, low, passes):
    assert Kind("", 9, Interval(mean, low, 1.0), 0.1, 1.0, 1.0).passes == passes


def test_a_lone_candidate_needs_no_gate():
    assert GATE.weights([Item("q", instruction="find")], np.array([[0.4]])).tolist() == [0.0]


def test_a_gate_survives_a_file():
    assert Gate.from_json(json.loads(json.dumps(GATE.to_json()))) == GATE


@pytest.mark.parametrize(
    "row",
    [None, {}, {"kinds": 3}, {"kinds": [{"gain": {"mean": 1}}]}, {"kinds": [{"gain": {"mean": 0, "low": 0, "high": 0}}]}],
)
def test_what_is_no_gate_is_refused(row):
    with pytest.raises(ArtifactError, match="no gate of a reranker"):
        Gate.from_json(row)


def test_how_a_reranker_is_used_survives_a_file():
    fused = Fused(Likes(), 7, 0.3, GATE, clip=(-2.0, 3.0), top=2, budget=Budget(pairs=1.5), stride=3)
    assert Fused.from_json(json.loads(json.dumps(fused.to_json())), fused.reranker) == fused
    plain = Fused(Likes())
    assert Fused.from_json(json.loads(json.dumps(plain.to_json())), plain.reranker) == plain


def test_what_was_learned_for_another_reranker_is_refused():
    row, other = Fused(Likes()).to_json(), Likes()
    other.fingerprint = "another one entirely"
    with pytest.raises(ArtifactError, match="learned for reranker likes, and that one is another one"):
        Fused.from_json(row, other)
    for bad in (None, {}, {**row, "more": 1}):
        with pytest.raises(ArtifactError, match="does not say how a reranker is used"):
            Fused.from_json(bad, Likes())
