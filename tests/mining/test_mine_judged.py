"""The judge of `mine`: the rule, what it fills in, when it is refused, and how its work is taken up again."""

import numpy as np
import pytest

from hardwon.errors import JudgeError
from hardwon.items import Candidate, Example, Item
from hardwon.mining import Hardest, Mining, mine
from hardwon.mining import judging as asking

SURE = Mining(depth=9, keep=9, selector=Hardest())


def odds(grade):
    return float(np.log(grade / (1 - grade)))


def right(query, item):
    return 4.0 if query.text[2:] == item.text[2:] else -4.0


def test_the_rule_against_hand_values(angled, judging):
    """The positive of query 0 has grade 0.8, so with beta 0.1 what is above 0.7 is likely to belong to it."""
    examples, encoder = angled
    given = {"st0": 0.8, "st1": 0.75, "st2": 0.71, "st3": 0.69, "st4": 0.2}

    def rule(query, item):
        return odds(given[item.text]) if query.text == "sq0" and item.text in given else right(query, item)

    mined = mine(examples, encoder, judging(rule), settings=Mining(depth=5, judged=4, keep=1, min_auc=0.0))
    lines = [e for e in mined.ledger if e.row == 0]
    assert [e.verdict for e in lines] == ["rejected", "rejected", "kept", "spare", "spare"]
    assert [e.rule for e in lines] == [
        "judge > positive - 0.1",
        "judge > positive - 0.1",
        "cyclic",
        "not selected",
        "beyond the judged depth",
    ]
    assert [e.grade for e in lines] == [pytest.approx(g, abs=1e-5) if g else None for g in (0.75, 0.71, 0.69, 0.2, None)]
    assert (lines[0].yes, lines[0].no) == (pytest.approx(odds(0.75), abs=1e-5), 0.0)  # log-odds stand against 0
    assert (lines[4].yes, lines[4].no, lines[4].problem) == (None, None, "")
    assert [(e.gold_yes, e.gold_no) for e in lines] == [(pytest.approx(odds(0.8), abs=1e-5), 0.0)] * 5
    assert [e.gold_grade for e in lines] == pytest.approx([0.8] * 5, abs=1e-5)
    first = mined.examples[0]
    assert first.related == {Item(text="st1").content, Item(text="st2").content}
    assert [(c.item.text, c.origin, c.relevance) for c in first.candidates] == [
        ("st0", "gold", pytest.approx(0.8, abs=1e-5)),
        ("st3", "mined", pytest.approx(0.69, abs=1e-5)),
    ]


def test_every_positive_is_judged_once(angled, judging):
    examples, encoder = angled
    second = Candidate(Item(text="zero"), origin="gold")
    examples = (examples[0].adding([second, second]), *examples[1:])
    grades = {"st0": 0.5, "zero": 0.9, "st1": 0.61, "st2": 0.59}

    def rule(query, item):
        return odds(grades[item.text]) if query.text == "sq0" and item.text in grades else right(query, item)

    judge = judging(rule)
    mined = mine(examples, encoder, judge, settings=Mining(depth=3, keep=9, min_auc=0.0))
    asked = [(q.key, i.key) for batch in judge.asked for q, i in batch]
    assert asked.count((examples[0].query.key, second.item.key)) == 1
    assert len(asked) == len(set(asked))
    lines = [e for e in mined.ledger if e.row == 0]
    assert [e.verdict for e in lines] == ["rejected", "kept", "kept"]  # the bar is the median, 0.7, less 0.1
    assert [e.bar for e in lines] == pytest.approx([0.6] * 3, abs=1e-5)
    gold = [c.relevance for c in mined.examples[0].candidates if c.origin == "gold"]
    assert gold == pytest.approx([0.5, 0.9, 0.9], abs=1e-5)


def test_negatives_that_were_given_are_judged_and_not_doubled(angled, judging):
    examples, encoder = angled
    given = (Candidate(Item(text="st1")), Candidate(Item(text="st2"), 0.5), Candidate(Item(text="st7"), 0.3))
    examples = (examples[0].adding(given), *examples[1:])
    grades = {"st0": 0.8, "st1": 0.75, "st2": 0.2, "st3": 0.1}

    def rule(query, item):
        return odds(grades[item.text]) if query.text == "sq0" and item.text in grades else right(query, item)

    first = mine(examples, encoder, judging(rule), settings=Mining(depth=3, keep=9, min_auc=0.0)).examples[0]
    assert [(c.item.text, c.origin, c.relevance) for c in first.candidates] == [
        ("st0", "gold", pytest.approx(0.8, abs=1e-5)),
        ("st1", "given", pytest.approx(0.75, abs=1e-5)),
        ("st2", "given", pytest.approx(0.2, abs=1e-5)),
        ("st7", "given", 0.3),  # not among the three retrieved: nobody was asked
        ("st3", "mined", pytest.approx(0.1, abs=1e-5)),
    ]
    assert first.related == {Item(text="st1").content}  # likely to belong to the query, whoever gave it


def test_beta_moves_the_line(angled, judging):
    examples, encoder = angled
    judge = judging(lambda q, i: right(q, i) if q.text != "sq0" else odds(0.8 - 0.1 * int(i.text[-1]) + 0.001))
    kept = {}
    for beta in (0.0, 0.15, 0.35, -1.0):
        mined = mine(examples, encoder, judge, settings=Mining(depth=5, keep=9, beta=beta, min_auc=0.0))
        kept[beta] = [c.item.text for c in mined.examples[0].negatives]
    assert kept[0.0] == ["st1", "st2", "st3", "st4", "st5"]
    assert kept[0.15] == ["st2", "st3", "st4", "st5"]
    assert kept[0.35] == ["st4", "st5"]
    assert kept[-1.0] == kept[0.0]


def test_the_judge_is_checked_first_and_then_asked_about_the_top_only(angled, judging):
    examples, encoder = angled
    judge = judging(right)
    mine(examples, encoder, judge, settings=Mining(depth=6, judged=2, keep=4))
    checks, asked = judge.asked
    gold = [(q, i) for q, i in checks if (q, i) in {(e.query, e.gold[0]) for e in examples}]
    injected = [(q, i.text) for q, i in checks if i.text.startswith(asking.INJECTED)]
    random = [(q, i) for q, i in checks if (q, i) not in gold and (q, i.text) not in injected]
    assert len(gold) == len(random) == len(injected) == 10
    assert all(q.text[2:] != i.text[2:] for q, i in random)  # random pairs are no positives
    assert set(injected) == {(q, f"{asking.INJECTED} {i.text}") for q, i in random}
    assert gold != checks[:10]  # shuffled
    nearest = {("sq0", "st1"), ("sq0", "st2"), ("sq1", "st0"), ("sq1", "st2")}
    nearest |= {(f"sq{n}", f"st{m}") for n in range(2, 10) for m in (0, 1)}
    assert {(q.text, i.text) for q, i in asked} == nearest - {(q.text, i.text) for q, i in checks}  # nothing twice


def test_calibration_of_a_good_judge(angled, judging):
    examples, encoder = angled
    found = mine(examples, encoder, judging(right), settings=SURE).calibration
    assert found.auc == 1.0
    assert found.gold == (0, 0, 0, 0, 0, 0, 0, 0, 0, 10)
    assert found.random == (10, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    assert found.ece == pytest.approx(1 / (1 + np.exp(4.0)))


def test_a_blind_judge_is_refused_before_it_costs_much(angled, judging):
    examples, encoder = angled
    blind = judging(lambda q, i: 1.0)
    told = r"AUC 0\.500, below 0\.8 \(calibration error 0\.231; grades of gold pairs by tenths \[.*10.*\]\): .* lower min_auc"
    with pytest.raises(JudgeError, match=told):
        mine(examples, encoder, blind, settings=SURE)
    assert [len(asked) for asked in blind.asked] == [30]  # gold, random, canaries; nothing of what was retrieved
    with pytest.raises(JudgeError, match=r"AUC 0\.000"):
        mine(examples, encoder, judging(lambda q, i: -right(q, i)), settings=Mining(min_auc=0.1))
    assert mine(examples, encoder, judging(lambda q, i: 1.0), settings=Mining(min_auc=0.5)).calibration.auc == 0.5


def test_a_judge_that_cannot_be_checked_is_refused(encoder, judging):
    """Two queries that share their only positive: no pair is known to be wrong."""
    gold = Candidate(Item(text="yes"), origin="gold")
    examples = [Example(Item(text=f"q{n}"), (gold, Candidate(Item(text="no"))), "s") for n in range(2)]
    with pytest.raises(JudgeError, match="there are no random pairs"):
        mine(examples, encoder(), judging(lambda q, i: 1.0))


def test_an_interrupted_judge_goes_on_where_it_stopped(pairs, encoder, judging, by_hash, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "BATCH", 16)
    examples, settings = pairs(18), Mining(depth=3, keep=2, min_auc=0.0)
    whole = judging(by_hash)
    undisturbed = mine(examples, encoder(dim=3), whole, settings=settings, store=tmp_path / "whole")
    sizes = [len(asked) for asked in whole.asked]
    assert sizes[:4] == [16, 16, 16, 6]  # 18 gold, 18 random, 18 canaries
    for calls in range(1, len(sizes)):
        folder = tmp_path / str(calls)
        with pytest.raises(RuntimeError, match="fell over"):
            mine(examples, encoder(dim=3), judging(by_hash, calls=calls), settings=settings, store=folder)
        again = judging(by_hash)
        assert mine(examples, encoder(dim=3), again, settings=settings, store=folder) == undisturbed
        assert again.asked == whole.asked[calls:]
    third = judging(by_hash)
    assert mine(examples, encoder(dim=3), third, settings=settings, store=tmp_path / "whole") == undisturbed
    assert not third.asked


def test_another_embedder_costs_only_pairs_that_were_never_judged(pairs, encoder, judging, by_hash, tmp_path):
    examples, settings = pairs(30), Mining(depth=4, keep=2, min_auc=0.0)
    first, second, alone = judging(by_hash), judging(by_hash), judging(by_hash)
    turned = encoder({"st3": 40, "sq5": 100}, dim=3)
    turned.fingerprint = "turned"
    one = mine(examples, encoder(dim=3), first, settings=settings, store=tmp_path)
    two = mine(examples, turned, second, settings=settings, store=tmp_path)
    assert two == mine(examples, turned, alone, settings=settings) != one
    said = {pair for asked in first.asked for pair in asked}
    wanted = {pair for asked in alone.asked for pair in asked}
    assert {pair for asked in second.asked for pair in asked} == wanted - said
    assert 0 < sum(map(len, second.asked)) < sum(map(len, alone.asked))


def test_judgements_of_other_questions_are_not_taken(pairs, encoder, judging, by_hash, tmp_path):
    """The same folder with other examples, another judge."""
    settings = Mining(depth=3, keep=2, min_auc=0.0)
    mine(pairs(6), encoder(dim=3), judging(by_hash), settings=settings, store=tmp_path)
    for examples, judge in (
        (pairs(6, "other"), judging(by_hash)),
        (pairs(6), judging(lambda q, i: 1 - by_hash(q, i), fingerprint="another")),
    ):
        found = mine(examples, encoder(dim=3), judge, settings=settings, store=tmp_path)
        alone = judging(judge.rule, fingerprint=judge.fingerprint)
        assert found == mine(examples, encoder(dim=3), alone, settings=settings)
        assert judge.asked == alone.asked


def test_without_a_folder_nothing_is_written(pairs, encoder, judging, by_hash, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine(pairs(6), encoder(dim=3), judging(by_hash), settings=Mining(min_auc=0.0))
    assert list(tmp_path.iterdir()) == []


def test_a_judge_that_goes_by_the_place_of_a_pair_is_refused(pairs, encoder):
    """It says Yes to the first half of whatever it is given at once; gold pairs must not stand there."""

    class Placed:
        fingerprint = "placed"

        def score_pairs(self, pairs, *, progress=""):
            return np.array([3.0 if n < len(pairs) / 2 else -3.0 for n in range(len(pairs))], dtype=np.float32)

    for seed in range(3):
        with pytest.raises(JudgeError, match="tells gold pairs from random ones with AUC"):
            mine(pairs(60), encoder(dim=3), Placed(), settings=Mining(depth=5, seed=seed))
