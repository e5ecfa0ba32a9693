"""`mine` against an oracle that does everything the slow way, on whatever hypothesis draws."""

import contextlib
import io

import hypothesis
import numpy as np
import pytest
from fakes import AngledEncoder, RuleJudge, odds_by_hash
from hypothesis import strategies as st

from hardwon.errors import DataError
from hardwon.items import Candidate, Example, Item
from hardwon.mining import AtRandom, Cyclic, Hardest, Mining, mine

# Records are made inside the tests: the type checks draw random numbers, which a strategy may not.
items = st.tuples(st.sampled_from([f"t{n}" for n in range(8)]), st.sampled_from(["", "find"]))
rows = st.tuples(
    items,  # the query: may be a text of the pool, or several examples' at once
    st.lists(items, min_size=1, max_size=2),
    st.lists(items, max_size=2),
    st.sampled_from("ab"),
    st.sets(st.integers(0, 7), max_size=3),
)
many_rows = st.lists(rows, min_size=1, max_size=7)
SELECTORS = (Cyclic(), Cyclic(2), Hardest(), AtRandom())
fields = st.fixed_dictionaries(
    {
        "depth": st.integers(3, 12),
        "skip": st.integers(0, 2),
        "keep": st.integers(1, 5),
        "judged": st.one_of(st.none(), st.integers(1, 6)),
        "beta": st.sampled_from([0.0, 0.1, 0.5]),
        "ceiling": st.one_of(st.none(), st.just(0.5)),
        "selector": st.integers(0, 3),
        "within_source": st.booleans(),
    }
)


def made(rows, fields):
    """Examples and settings of what was drawn."""
    data = [
        Example(
            Item(query[0], (), query[1]),
            (
                *(Candidate(Item(text, (), told), origin="gold") for text, told in gold),
                *(Candidate(Item(text, (), told)) for text, told in given),
            ),
            source,
            frozenset(Item(text=f"t{n}").content for n in related),
        )
        for query, gold, given, source, related in rows
    ]
    return data, Mining(**(fields | {"selector": SELECTORS[fields["selector"]]}), min_auc=0.0)


def retrieved(data, row, how, encoder):
    """(item, similarity, rank) that must be found for one example, best first."""
    example = data[row]
    pool = {}
    for other in data:
        if not how.within_source or other.source == example.source:
            pool.update((c.item.key, c.item) for c in other.candidates)
    barred = {c.item.content for c in example.candidates if c.origin == "gold"} | example.related | {example.query.content}
    query = encoder.encode([example.query])[0].astype(np.float64)
    scored = [
        (float(np.float32((encoder.encode([item])[0] * query).sum())), -n, item)
        for n, item in enumerate(pool.values())
        if item.content not in barred
    ]
    scored = [hit for hit in scored if how.ceiling is None or hit[0] < how.ceiling]
    best = [(item, score, rank) for rank, (score, _, item) in enumerate(sorted(scored, key=lambda t: t[:2], reverse=True))]
    return best[: how.depth][how.skip :]


def looked_at(mined, row):
    """The ledger's lines of what the rules before the judge left."""
    return [e for e in mined.ledger if e.row == row and "similar" not in e.rule]


def without_a_judge(rows, fields):
    """Everything that fits is found, nothing else, and the order is that of exact products."""
    (data, how), model = made(rows, fields), AngledEncoder(dim=3)
    expected = [retrieved(data, row, how, model) for row in range(len(data))]
    if not any(expected):
        with pytest.raises(DataError, match="nothing but the positives"):
            mine(data, model, settings=how)
        return
    mined = mine(data, model, settings=how)
    assert len(mined.examples) == len(data)
    for row, (before, after) in enumerate(zip(data, mined.examples, strict=True)):
        lines = looked_at(mined, row)
        assert [(e.candidate, e.rank) for e in lines] == [(item.key, rank) for item, _, rank in expected[row]]
        assert [e.similarity for e in lines] == pytest.approx([score for _, score, _ in expected[row]], abs=1e-6)
        check(before, after, lines, how)
        fresh = {e.content for e in lines} - {c.item.content for c in before.candidates}
        assert sum(e.verdict == "kept" for e in lines) == min(how.keep, len(fresh))


def check(before, after, lines, how):
    """What holds with and without a judge."""
    new = after.candidates[len(before.candidates) :]
    never = {item.content for item in before.gold} | before.related | {before.query.content}
    assert not never & {c.item.content for c in new}
    assert not after.related & {c.item.content for c in new}
    assert after.related >= before.related
    assert [(c.item, c.origin) for c in after.candidates[: len(before.candidates)]] == [
        (c.item, c.origin) for c in before.candidates
    ]
    assert {c.origin for c in new} <= {"mined"}
    kept = [e.candidate for e in lines if e.verdict == "kept"]
    assert [c.item.key for c in new] == kept
    assert len(kept) == len({c.item.content for c in new}) <= how.keep
    assert not {c.item.content for c in new} & {c.item.content for c in before.candidates}


def with_a_judge(rows, fields):
    """What may be a positive is never chosen; everything says why."""
    (data, how), model, judge = made(rows, fields), AngledEncoder(dim=3), RuleJudge(odds_by_hash)
    expected = [retrieved(data, row, how, model) for row in range(len(data))]
    if not any(expected):
        return
    random_pairs = any(
        {other.gold[0].content for other in data if other.source == e.source} - {g.content for g in e.gold} - e.related
        for e in data
    )
    if not random_pairs:
        return
    mined = mine(data, model, judge, settings=how)
    for row, (before, after) in enumerate(zip(data, mined.examples, strict=True)):
        lines = looked_at(mined, row)
        check(before, after, lines, how)
        bar = np.median([sigmoid(odds_by_hash(before.query, item)) for item in set(before.gold)])
        asked = [item for item, _, _ in expected[row]][: how.judged]
        # Copies of a likely positive go with it.
        false = {item.content for item in asked if sigmoid(odds_by_hash(before.query, item)) > bar - how.beta}
        assert after.related == before.related | false
        for place, (entry, (item, _, _)) in enumerate(zip(lines, expected[row], strict=True)):
            if place >= len(asked):
                assert (entry.verdict, entry.rule, entry.grade) == ("spare", "beyond the judged depth", None)
                continue
            odds = odds_by_hash(before.query, item)
            assert entry.yes - entry.no == pytest.approx(odds, abs=1e-5)
            assert entry.grade == pytest.approx(sigmoid(odds), abs=2e-6)
            others = [item for item in dict.fromkeys(before.gold) if item != before.gold[0]]
            said = [entry.gold_grade, *(one.grade for one in entry.other_golds)]
            graded = [sigmoid(odds_by_hash(before.query, item)) for item in (before.gold[0], *others)]
            assert said == pytest.approx(graded, abs=2e-6)
            assert (entry.verdict == "rejected") == (entry.content in false)
        judged = {item.key: sigmoid(odds_by_hash(before.query, item)) for item in (*before.gold, *asked) if asked}
        for was, now in zip(before.candidates, after.candidates, strict=False):
            assert now.relevance == pytest.approx(judged.get(was.item.key, was.relevance), abs=2e-6)


def sigmoid(odds):
    return 1 / (1 + np.exp(-odds))


def cases(count, seed):
    """Try so many drawn cases of each; raises what the first that fails raises, with the smallest one found."""
    for one in (without_a_judge, with_a_judge):
        told = hypothesis.settings(max_examples=count, deadline=None, database=None)
        drawn = hypothesis.seed(seed)(told(hypothesis.given(rows=many_rows, fields=fields)(one)))
        with contextlib.redirect_stderr(io.StringIO()):  # the bars of thousands of runs
            drawn()
