"""What becomes of one query's candidates: missing judgements, too few survivors, margins, planted positives."""

import json

import numpy as np
import pytest

from hardwon.items import Candidate, Example, Item
from hardwon.mining import Hardest, Margin, Mining, mine
from hardwon.mining.choose import Found, Hit, looked_at, select
from hardwon.models import Judgements


def odds(grade):
    return np.log(grade / (1 - grade))


def judged(*grades, problems=None):
    """Judgements with these grades; None for no usable answer."""
    yes = np.array([np.nan if g is None else odds(g) for g in grades], dtype=np.float32)
    return Judgements(yes, np.where(np.isnan(yes), np.nan, 0).astype(np.float32), problems or {})


def one(count):
    """An example and what was found for it: "c0", "c1" ..."""
    example = Example(Item(text="q"), (Candidate(Item(text="gold"), origin="gold"),), "s")
    items = [Item(text=f"c{n}") for n in range(count)]
    return example, looked_at(4, [Hit(item, 0.9 - n / 100, n) for n, item in enumerate(items)], 0.85, Mining())


def kept(chosen):
    return [(c.item.text, c.relevance) for c in chosen.example.negatives]


SURE = Mining(keep=3, selector=Hardest())
PAPER = Mining(keep=3, selector=Hardest(), fallback="paper")


def test_what_has_no_usable_judgement_is_never_chosen():
    example, found = one(4)
    said = judged(0.9, 0.2, None, None, 0.1, problems={2: "HTTP 500"})
    chosen = select(example, found, said, SURE)
    assert [text for text, _ in kept(chosen)] == ["c0", "c3"]
    assert [(e.verdict, e.rule, e.problem, e.yes) for e in chosen.entries[1:3]] == [
        ("spare", "no usable judgement", "HTTP 500", None),
        ("spare", "beyond the budget", "", None),
    ]
    assert chosen.counts == ("fewer chosen than wanted",)
    assert not chosen.example.related


def test_a_copy_of_what_has_no_judgement_stands_for_itself():
    """The same text under two instructions: the judge answered for the second one only."""
    example, _ = one(0)
    items = (Item(text="c", instruction="a"), Item(text="c", instruction="b"))
    found = Found(0, items, (0.9, 0.8), (0, 1), 0.85)
    assert [e.verdict for e in select(example, found, judged(0.9, None, 0.1), SURE).entries] == ["spare", "kept"]
    assert [e.verdict for e in select(example, found, judged(0.9, None, 0.85), SURE).entries] == ["rejected", "rejected"]


def test_without_a_judgement_of_the_positive_nothing_can_be_decided():
    example, found = one(2)
    for rules in (SURE, PAPER):
        chosen = select(example, found, judged(None, 0.2, 0.1, problems={0: "no logprobs"}), rules)
        assert kept(chosen) == []
        assert {(e.rule, e.gold_problem) for e in chosen.entries} == {("the positive has no usable judgement", "no logprobs")}
        assert chosen.counts == ("positive without a usable judgement", "none chosen")
        assert chosen.example.candidates[0].relevance is None


def several(count, *golds):
    """As `one`, with several positives."""
    example, found = one(count)
    return Example(example.query, tuple(Candidate(Item(text=text), origin="gold") for text in golds), "s"), found


@pytest.mark.parametrize(
    ("golds", "bar"),
    [
        ((0.9,), 0.8),
        ((0.9, 0.5), 0.6),  # half-way
        ((0.02, 0.9, 0.8), 0.7),  # a wrong label in front does not move it far
        ((0.8, 0.9, 0.02), 0.7),
        ((None, 0.9), 0.8),  # one without a judgement does not count
    ],
)
def test_of_several_positives_the_median_sets_the_bar(golds, bar):
    example, found = several(2, *(f"gold {n}" for n in range(len(golds))))
    chosen = select(example, found, judged(*golds, bar + 0.01, bar - 0.01), SURE)
    assert [e.verdict for e in chosen.entries] == ["rejected", "kept"]
    assert [e.bar for e in chosen.entries] == pytest.approx([bar] * 2)
    graded = [None if g is None else pytest.approx(g) for g in golds]
    assert [c.relevance for c in chosen.example.candidates] == [*graded, pytest.approx(bar - 0.01)]
    assert [[e.gold_grade, *(said.grade for said in e.other_golds)] for e in chosen.entries] == [graded] * 2


def test_only_where_no_positive_has_a_judgement_can_nothing_be_decided():
    example, found = several(2, "one", "other", "one")
    chosen = select(example, found, judged(None, None, 0.2, 0.1, problems={1: "HTTP 500"}), PAPER)
    assert kept(chosen) == []
    assert chosen.counts == ("positive without a usable judgement", "none chosen")
    assert [(e.bar, e.gold_problem, [said.problem for said in e.other_golds]) for e in chosen.entries] == [
        (None, "", ["HTTP 500"])
    ] * 2


def test_too_few_survivors_are_counted_and_by_default_left_too_few():
    example, found = one(4)
    chosen = select(example, found, judged(0.9, 0.85, 0.2, 0.88, 0.1), SURE)
    assert kept(chosen) == [("c1", pytest.approx(0.2)), ("c3", pytest.approx(0.1))]
    assert chosen.counts == ("fewer chosen than wanted",)
    chosen = select(example, found, judged(0.08, 0.05, 0.02, 0.01, 0.0001), SURE)
    assert kept(chosen) == []
    assert chosen.counts == ("positive graded no higher than beta, so that nothing can survive", "none chosen")


def test_the_fallback_of_the_paper_repeats():
    example, found = one(4)
    chosen = select(example, found, judged(0.9, 0.85, 0.2, 0.88, 0.1), PAPER)
    assert [text for text, _ in kept(chosen)] == ["c1", "c1", "c3"]  # in retrieval order
    assert chosen.counts == ("fewer chosen than wanted", "filled by repeating the chosen")
    assert [e.verdict for e in chosen.entries] == ["rejected", "kept", "rejected", "kept"]
    assert chosen.example.related == {Item(text="c0").content, Item(text="c2").content}


def test_the_fallback_of_the_paper_draws_where_none_survived():
    example, found = one(6)
    drawn = set()
    for seed in range(20):
        rules = Mining(keep=2, fallback="paper", seed=seed)
        chosen = select(example, found, judged(0.05, *[0.04] * 5, None), rules)
        assert [grade for _, grade in kept(chosen)] == [1.0, 1.0]
        assert chosen.counts[1:] == ("none chosen", "filled at random, graded 1.0")
        texts = {text for text, _ in kept(chosen)}
        drawn |= texts
        assert [e.rule for e in chosen.entries if e.verdict == "kept"] == ["at random, for none was left"] * 2
        assert [e.grade for e in chosen.entries] == [*[pytest.approx(0.04)] * 5, None]  # the ledger keeps what the judge said
        assert not chosen.example.related & {c.item.content for c in chosen.example.negatives}
        assert len(chosen.example.related) == 3
    assert drawn == {"c0", "c1", "c2", "c3", "c4"}  # never what nobody judged


def test_nothing_retrieved_leaves_the_example_alone():
    example, found = one(0)
    chosen = select(example, found, judged(0.9), PAPER)
    assert chosen.example == example
    assert (chosen.entries, chosen.counts) == ([], ("nothing retrieved",))


def test_margin_uses_the_cosine_of_the_positive(angled):
    """cos 10 = 0.985 for the positive of query 2, so a margin of 0.05 asks for less than 0.935: 25 degrees (0.906) and more."""
    examples, encoder = angled
    mined = mine(examples, encoder, settings=Mining(keep=9, selector=Margin(absolute=0.05, relative=0.0)))
    assert [c.item.text for c in mined.examples[2].negatives] == [f"st{n}" for n in range(5, 10)]
    assert {e.rule for e in mined.ledger if e.verdict == "kept"} == {"margin"}
    assert mined.counts == {"fewer chosen than wanted": 9, "none chosen": 1}


def test_counts_stand_in_the_summary(angled, judging, tmp_path):
    examples, encoder = angled
    judge = judging(lambda q, i: -4.0 if q.text == "sq3" else 4.0 if q.text[2:] == i.text[2:] else -4.0)
    mined = mine(examples, encoder, judge, settings=Mining(keep=9, depth=9, min_auc=0.0))
    mined.write(tmp_path, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["queries"] == {
        "none chosen": 1,
        "positive graded no higher than beta, so that nothing can survive": 1,
    }


def test_planted_positives_do_not_survive(encoder, judging):
    """One in twenty candidates is a paraphrase of somebody's positive, close to it in the embedder's eyes."""
    rng = np.random.default_rng(0)
    count, planted = 240, 12
    angles = {f"q{n}": float(n) * 0.9 for n in range(count)}
    angles |= {f"t{n}": angles[f"q{n}"] + rng.normal(0, 2) for n in range(count)}
    angles |= {f"t{n} said otherwise": angles[f"q{n}"] + rng.normal(0, 2) for n in range(planted)}
    examples = [Example(Item(text=f"q{n}"), (Candidate(Item(text=f"t{n}"), origin="gold"),)) for n in range(count)]
    extra = tuple(Candidate(Item(text=f"t{n} said otherwise")) for n in range(planted))
    examples[-1] = examples[-1].adding(extra)  # another query's own negatives bring them into the pool

    def same(query, item):
        return query.text[1:] == item.text.split()[0][1:]

    noise = {}

    def rule(query, item):  # a judge with AUC of about 0.99
        drawn = noise.setdefault((query.text, item.text), float(rng.normal(0, 1)))
        return drawn + (3.0 if same(query, item) else -3.0)

    def false(mined):
        pairs = [(e.query, c.item) for e in mined.examples[:-1] for c in e.negatives if c.origin == "mined"]
        return sum(same(query, item) for query, item in pairs), len(pairs)

    settings = Mining(depth=20, keep=8, selector=Hardest())
    without, _ = false(mine(examples, encoder(angles), settings=settings))
    survived, kept = false(mine(examples, encoder(angles), judging(rule), settings=settings))
    assert without >= planted / 2  # among the kept of a miner that does not judge
    # With none of n: at most 3 / n at 95 % (rule of three).
    assert survived + 3 <= 0.005 * kept
