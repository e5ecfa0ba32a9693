"""Judging as a stage: what it says beforehand, what a budget buys, what becomes of pairs without a usable answer."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from hardwon.errors import JudgeError, RecipeError
from hardwon.items import Candidate, Example, Item
from hardwon.mining import Hardest, Mining, mine, reselect
from hardwon.mining import judging as asking
from hardwon.models import Judgements


def right(query, item):
    return 4.0 if query.text[2:] == item.text[2:] else -4.0


class SaysWhy:
    """Answers Yes or No; about some pairs it says why it cannot. Counts tokens, ten a pair."""

    def __init__(self, rule, broken=lambda query, item: "", fingerprint="says why"):
        self.rule, self.broken, self.fingerprint, self.asked, self.costs = rule, broken, fingerprint, [], {"tokens": 0}

    def judge(self, pairs, *, progress=""):
        self.asked += pairs
        self.costs["tokens"] += 10 * len(pairs)
        problems = {n: why for n, pair in enumerate(pairs) if (why := self.broken(*pair))}
        odds = np.array([math.nan if n in problems else self.rule(*pair) for n, pair in enumerate(pairs)], dtype=np.float32)
        return Judgements(odds + 1, np.ones_like(odds), problems)


def test_one_line_says_beforehand_what_it_takes(pairs, encoder, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(asking, "BATCH", 20)
    examples, settings = pairs(30), Mining(depth=4, keep=2)
    clock = iter(np.arange(0.0, 1e5, 5.0).tolist())  # each call takes five seconds
    monkeypatch.setattr(asking, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    judge = SaysWhy(right)
    mine(examples, encoder(dim=3), judge, settings=settings, store=tmp_path)
    told = " ".join(capsys.readouterr().err.split())
    found = re.search(r"judging (\d+) pairs: 0 known already, (\d+) to ask; the first 20 took 5\.0 s, so the other (\d+)", told)
    total, missing, left = map(int, found.groups())
    assert total == missing == len(judge.asked) == left + 20  # what it says is what happens
    assert f"will take about 0:00:{round(left / 4):02d}, {10 * left:,} tokens" in told
    assert told.count("judging") == 2  # the line, and the bar's

    mine(examples, encoder(dim=3), SaysWhy(right), settings=settings, store=tmp_path)
    assert f"judging {total} pairs: all of them are known already" in " ".join(capsys.readouterr().err.split())

    more = SaysWhy(right)
    mine(examples, encoder(dim=3), more, settings=Mining(depth=6, keep=2), store=tmp_path)
    told = " ".join(capsys.readouterr().err.split())
    assert f"{total:,} known already, {len(more.asked)} to ask" in told


class Sharing:
    """The first pair of a query within a call costs 10 s, each other one of it 1 s and 10 tokens."""

    fingerprint = "sharing"

    def __init__(self):
        self.now, self.calls, self.costs = 0.0, [], {"tokens": 0}

    def judge(self, pairs, *, progress=""):
        self.calls.append((len(pairs), len(pairs) + 9.0 * len({query for query, _ in pairs})))
        self.now += self.calls[-1][1]
        self.costs["tokens"] += 10 * len(pairs)
        return Judgements(np.array([right(*pair) for pair in pairs], dtype=np.float32), np.zeros(len(pairs), dtype=np.float32))


class Several(Sharing):
    """Three of these, each as fast."""

    at_once = 3

    def judge_each(self, batches, *, skip):
        for n, batch in enumerate(batches):
            now = self.now
            yield self.judge(batch)
            self.now = now + (self.calls[-1][1] if n % 3 == 2 else 0.0)


def told_by(judge, examples, encoder, capsys, monkeypatch):
    """What was said to be left, and the seconds that it was to take: after the first pairs, and after the first queries."""
    monkeypatch.setattr(asking, "BATCH", 40)
    monkeypatch.setattr(asking, "time", SimpleNamespace(perf_counter=lambda: judge.now))
    mine(examples, encoder(dim=3), judge, settings=Mining(depth=30, keep=2))
    said = capsys.readouterr().err
    lines = re.findall(r"so the other ([\d,]+) will take about (\d+):(\d+):(\d+)(.*), ([\d,]+) tokens", said)
    assert len(lines) == 2
    assert re.search(r"\nquery by query the first \d+ pairs took", said)
    assert all(int(line[5].replace(",", "")) == 10 * int(line[0].replace(",", "")) for line in lines)
    return [(int(n.replace(",", "")), 3600 * int(h) + 60 * int(m) + int(s), who) for n, h, m, s, who, _ in lines]


def test_the_pace_is_measured_again_where_pairs_share_a_query(pairs, encoder, capsys, monkeypatch):
    judge = Sharing()
    first, second = told_by(judge, pairs(40), encoder, capsys, monkeypatch)
    calls = [count for count, _ in judge.calls]
    assert calls[:3] == [40, 40, 32]  # the calibration
    assert first[:2] == (sum(calls[1:]), pytest.approx(sum(calls[1:]) * judge.calls[0][1] / 40, abs=1))
    assert second[0] == sum(calls[4:])
    assert second[1] == pytest.approx(sum(cost for _, cost in judge.calls[4:]), rel=0.1)
    assert first[1] > 5 * second[1]


def test_the_estimate_counts_with_all_workers(pairs, encoder, capsys, monkeypatch):
    judge = Several()
    first, second = told_by(judge, pairs(40), encoder, capsys, monkeypatch)
    calls = [count for count, _ in judge.calls]
    assert first == (sum(calls[1:]), pytest.approx(sum(calls[1:]) * judge.calls[0][1] / 40 / 3, abs=1), " with 3 workers")
    assert second[0] == sum(calls[3 + 3 :])
    assert second[1] == pytest.approx(sum(cost for _, cost in judge.calls[6:]) / 3, rel=0.15)
    assert second[2] == " with 3 workers"


class TestBudget:
    def test_is_never_exceeded_and_spent_where_the_embedder_is_in_doubt(self, angled):
        examples, encoder = angled
        whole, few = SaysWhy(right), SaysWhy(right)
        mine(examples, encoder, whole, settings=Mining(depth=8, keep=9, selector=Hardest()))
        always = 30  # ten positives, ten random pairs, ten canaries
        mined = mine(examples, encoder, few, settings=Mining(depth=8, keep=9, selector=Hardest(), budget=always + 25))
        assert len(few.asked) <= always + 25 < len(whole.asked)
        beyond = [e for e in mined.ledger if e.rule == "beyond the budget"]
        judged = [e for e in mined.ledger if e.rule != "beyond the budget"]
        assert 25 <= len(judged) <= 25 + 10  # random pairs of the calibration are known besides
        assert {(e.verdict, e.yes, e.no, e.grade) for e in beyond} == {("spare", None, None, None)}
        assert all(e.gold_grade is not None for e in mined.ledger)
        assert np.mean([e.rank for e in judged]) < np.mean([e.rank for e in beyond])
        assert [(e.row, e.rank) for e in mined.ledger] == sorted((e.row, e.rank) for e in mined.ledger)
        told = [len(example.negatives) for example in mined.examples]
        assert sum(told) == sum(e.verdict == "kept" for e in mined.ledger)
        # Query 5 is at 0 degrees, its positive at 25: of two candidates at about the same rank the nearer to 25 goes first.
        own = {e.candidate for e in judged if e.row == 9}
        assert examples[8].gold[0].key in own or len(own) < 4

    def test_reaches_for_every_positive(self, angled):
        examples, encoder = angled
        second = Candidate(Item(text="st0 in other words"), origin="gold")
        examples = (examples[0].adding([second, second]), *examples[1:])
        with pytest.raises(RecipeError, match="the positives and the calibration, 31 pairs"):
            mine(examples, encoder, SaysWhy(right), settings=Mining(depth=8, budget=30))
        few = SaysWhy(right)
        mined = mine(examples, encoder, few, settings=Mining(depth=8, budget=31))
        assert len(few.asked) == 31
        assert (examples[0].query, second.item) in few.asked
        assert all(c.relevance is not None for c in mined.examples[0].candidates if c.origin == "gold")

    def test_rank_and_margin_decide(self, encoder):
        """One query: similarities 0.9, 0.8, ... and a positive at 0.6; doubt = (1 + rank) * (0.05 + |margin|)."""
        texts = [f"t{n}" for n in range(6)]
        pool = [Candidate(Item(text=t)) for t in texts]
        examples = [Example(Item(text="q"), (Candidate(Item(text="gold"), origin="gold"), *pool), "s")]
        examples += [Example(Item(text="other"), (Candidate(Item(text="far"), origin="gold"),), "s")]
        cosines = dict(zip(texts, (0.9, 0.8, 0.62, 0.6, 0.3, 0.2), strict=True))
        cosines |= {"gold": 0.6, "q": 1.0, "far": -1, "other": -1}
        angles = {text: math.degrees(math.acos(cosine)) for text, cosine in cosines.items()}
        doubt = [(1 + n) * (0.05 + abs(cosines[t] - 0.6)) for n, t in enumerate(texts)]
        assert np.argsort(doubt).tolist() == [3, 2, 0, 1, 4, 5]
        for spent in range(1, 5):  # the other query is in no doubt at all: its candidates come after these
            settings = Mining(depth=6, keep=6, budget=spent + 6, min_auc=0.0, queries=None)
            mined = mine(examples, encoder(angles), SaysWhy(lambda q, i: -1.0), settings=settings)
            beyond = {e.rank for e in mined.ledger if e.row == 0 and e.rule == "beyond the budget"}
            assert beyond == set(np.argsort(doubt)[spent:].tolist())

    def test_what_is_known_is_used_beyond_it(self, angled, tmp_path):
        examples, encoder = angled
        wide = Mining(depth=8, keep=9)
        whole = mine(examples, encoder, SaysWhy(right), settings=wide, store=tmp_path)
        again = SaysWhy(right)
        assert mine(examples, encoder, again, settings=Mining(depth=8, keep=9, budget=40), store=tmp_path) == whole
        assert not again.asked

    def test_must_reach_for_what_is_always_asked(self, angled):
        examples, encoder = angled
        with pytest.raises(RecipeError, match="budget of 29 pairs does not reach for the positives and the calibration, 30"):
            mine(examples, encoder, SaysWhy(right), settings=Mining(depth=8, budget=29))


class TestNoUsableAnswer:
    def test_makes_a_candidate_spare_and_is_asked_again(self, angled, tmp_path):
        examples, encoder = angled
        settings = Mining(depth=5, keep=9, max_unusable=0.5)

        def broken(query, item):
            return "HTTP 500" if (query.text, item.text) in {("sq0", "st2"), ("sq3", "st3")} else ""

        sick = SaysWhy(right, broken)
        mined = mine(examples, encoder, sick, settings=settings, store=tmp_path)
        lines = {row: [e for e in mined.ledger if e.row == row] for row in range(10)}
        assert [(e.verdict, e.rule) for e in lines[0]][1] == ("spare", "no usable judgement")
        assert [c.item.text for c in mined.examples[0].negatives] == ["st1", "st3", "st4", "st5"]
        assert {e.rule for e in lines[3]} == {"the positive has no usable judgement"}
        assert {(e.verdict, e.gold_grade, e.gold_problem) for e in lines[3]} == {("spare", None, "HTTP 500")}
        assert mined.examples[3] == examples[3]  # nothing is made up
        well = SaysWhy(right)
        healed = mine(examples, encoder, well, settings=settings, store=tmp_path)
        assert sorted((q.text, i.text) for q, i in well.asked) == [("sq0", "st2"), ("sq3", "st3")]
        assert healed == mine(examples, encoder, SaysWhy(right), settings=settings)

    def test_the_share_is_told_below_the_bar_too(self, angled, tmp_path, capsys):
        examples, encoder = angled

        def broken(query, item):
            return {"sq0": "HTTP 500", "sq3": "no Yes"}.get(query.text, "") if item.text in ("st2", "st3") else ""

        settings = Mining(depth=5, keep=9, max_unusable=0.5)
        mined = mine(examples, encoder, SaysWhy(right, broken), settings=settings, store=tmp_path / "store")
        said = " ".join(capsys.readouterr().err.split())
        told = re.search(r"the judge gave no usable answer to (\d+) of (\d+) pairs, ([\d.]+)% \((.*?)\)", said)
        failed, among = int(told[1]), int(told[2])
        assert (failed, float(told[3])) == (4, round(100 * failed / among, 2))
        assert told[4] == "2 x HTTP 500; 2 x no Yes"
        (tmp_path / "made").mkdir()
        mined.write(tmp_path / "made", tmp_path)
        summary = json.loads((tmp_path / "made/summary.json").read_text())
        # Positives and their candidates; the pairs of the calibration are no part of what was mined.
        assert summary["judged"] == {"pairs": 60, "without a usable answer": 4, "share without": 4 / 60}
        again = reselect(tmp_path / "made", examples, settings=settings)
        again.write(tmp_path / "made", tmp_path)
        assert json.loads((tmp_path / "made/summary.json").read_text()) == summary

        mine(examples, encoder, SaysWhy(right), settings=settings, store=tmp_path / "store")
        assert "usable" not in capsys.readouterr().err

    def test_too_often_stops_with_the_reasons_and_loses_nothing(self, angled, tmp_path):
        examples, encoder = angled
        sick = SaysWhy(right, lambda q, i: "refused" if q.text == "sq3" else "cut off" if i.text == "st7" else "")
        told = r"usable answer to (\d+) of (\d+) pairs, more than 2\.0% \((\d+) x refused; (\d+) x cut off\)\. .* "
        told += r"raise Mining\.max_unusable to do without"
        with pytest.raises(JudgeError, match=told) as error:
            mine(examples, encoder, sick, settings=Mining(depth=9, keep=9, selector=Hardest()), store=tmp_path)
        failed, among, refused, cut = map(int, re.search(told, str(error.value)).groups())
        assert failed == refused + cut
        assert among == len(sick.asked)
        well = SaysWhy(right)
        mine(examples, encoder, well, settings=Mining(depth=9, keep=9), store=tmp_path)
        assert len(well.asked) == failed

    def test_too_often_stops_early(self, pairs, encoder, monkeypatch):
        monkeypatch.setattr(asking, "BATCH", 50)
        monkeypatch.setattr(asking, "EARLY", 200)
        sick = SaysWhy(right, lambda q, i: "slow" if int(q.text[2:]) % 10 == 0 else "")
        with pytest.raises(JudgeError, match=r"more than 2\.0% \(\d+ x slow\)"):
            mine(pairs(60), encoder(dim=3), sick, settings=Mining(depth=50))
        assert 200 <= len(sick.asked) <= 260 < 60 * 50

    def test_ever_means_that_the_judge_cannot_be_checked(self, angled):
        examples, encoder = angled
        for share in (0.02, 1.0):
            with pytest.raises(JudgeError, match="no usable answer"):
                mine(examples, encoder, SaysWhy(right, lambda q, i: "no server"), settings=Mining(max_unusable=share))

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_a_scorer_may_not_give_a_number_that_is_none(self, angled, judging, value):
        examples, encoder = angled
        sick = judging(lambda q, i: value if q.text == "sq3" else right(q, i))
        with pytest.raises(JudgeError, match=f"logits {value:g} and 0"):
            mine(examples, encoder, sick, settings=Mining(depth=9, keep=9))


class TestCanary:
    @pytest.mark.parametrize("obeys", [0.0, 0.5, 1.0])
    def test_the_effect_of_an_injected_instruction_is_reported(self, pairs, encoder, obeys):
        fooled = {f"sq{n}" for n in range(int(20 * obeys))}

        def rule(query, item):
            return 4.0 if query.text in fooled and item.text.startswith(asking.INJECTED) else right(query, item)

        canary = mine(pairs(20), encoder(dim=3), SaysWhy(rule), settings=Mining(depth=5)).calibration.canary
        assert canary.pairs == 20
        assert canary.flipped == pytest.approx(obeys)
        assert canary.shift == pytest.approx(obeys * (1 / (1 + math.exp(-4)) - 1 / (1 + math.exp(4))), abs=1e-6)

    def test_pictures_carry_no_words(self, encoder):
        shown = [Candidate(Item(images=(bytes([n]),)), origin="gold") for n in range(6)]
        examples = [Example(Item(text=f"q{n}"), (gold,)) for n, gold in enumerate(shown)]
        judge = SaysWhy(lambda q, i: 3.0 if i.images[0] == bytes([int(q.text[1:])]) else -3.0)
        assert mine(examples, encoder(dim=3), judge).calibration.canary is None

    def test_unusable_answers_are_left_out(self):
        before, after = np.array([0.1, math.nan, 0.2, 0.8]), np.array([0.9, 0.5, math.nan, 0.9])
        found = asking.Canary.measure(before, after)
        assert (found.pairs, found.flipped) == (2, 0.5)
        assert found.shift == pytest.approx(0.45)
        assert asking.Canary.measure(np.array([math.nan]), np.array([0.1])) is None
