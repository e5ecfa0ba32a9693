"""Retrieval, rules and selection of `mine`, against hand values."""

import json

import pytest
from PIL import Image

from hardwon.errors import DataError, RecipeError
from hardwon.items import Candidate, Example, Item, read_examples
from hardwon.mining import AtRandom, Cyclic, Hardest, Mining, ledger, mine, read_ledger


def negatives(example):
    return [candidate.item.text for candidate in example.negatives]


def test_the_nearest_of_the_others_without_a_judge(angled):
    examples, encoder = angled
    mined = mine(examples, encoder, settings=Mining(depth=4, keep=4, selector=Hardest()))
    assert negatives(mined.examples[0]) == ["st1", "st2", "st3", "st4"]
    assert negatives(mined.examples[2]) == ["st0", "st1", "st3", "st4"]
    assert mined.calibration is None
    assert all(c.relevance is None and c.origin == "mined" for e in mined.examples for c in e.negatives)
    assert [e.gold for e in mined.examples] == [e.gold for e in examples]
    lines = [e for e in mined.ledger if e.row == 2]
    assert [e.rank for e in lines] == [0, 1, 2, 3]
    assert [e.similarity for e in lines] == pytest.approx([1.0, 0.996195, 0.965926, 0.939693], abs=1e-5)
    assert {(e.yes, e.no, e.grade, e.gold_yes, e.gold_grade) for e in lines} == {(None,) * 5}
    assert [e.gold_similarity for e in lines] == [pytest.approx(0.984808)] * 4  # cos 10


def test_fewer_candidates_than_asked_for_are_all_of_them(angled):
    examples, encoder = angled
    mined = mine(examples, encoder, settings=Mining(depth=500, keep=500))
    assert all(len(e.negatives) == 9 for e in mined.examples)
    assert len(mined.ledger) == 90


def test_known_positives_and_related_items_are_no_candidates(pairs, encoder):
    examples = list(pairs(6, related={0: ["st1", "st2"]}))
    second = Candidate(Item(text="st4", instruction="another instruction"), origin="gold")
    examples[3] = Example(examples[3].query, (*examples[3].candidates, second), "s")
    mined = mine(examples, encoder(dim=5), settings=Mining(keep=50))
    assert set(negatives(mined.examples[0])) == {"st3", "st4", "st5"}
    assert set(negatives(mined.examples[3])) == {"st0", "st1", "st2", "st5"}  # a copy of gold under another instruction is gold


def test_what_an_example_has_already_is_not_mined_again(angled):
    examples, encoder = angled
    given = (Candidate(Item(text="st3", instruction="another instruction")), Candidate(Item(text="st1"), 0.25))
    examples = (examples[0].adding(given), *examples[1:])
    mined = mine(examples, encoder, settings=Mining(depth=6, keep=9, selector=Hardest()))
    first = mined.examples[0]
    assert first.candidates[:3] == examples[0].candidates
    assert negatives(first)[2:] == ["st2", "st4", "st5"]
    found = {verdict: [e.content for e in mined.ledger if (e.row, e.verdict) == (0, verdict)] for verdict in ("kept", "spare")}
    assert found["kept"] == [Item(text=f"st{n}").content for n in (2, 4, 5)]
    assert found["spare"] == [Item(text=f"st{n}").content for n in (1, 3, 3)]
    assert {e.rule for e in mined.ledger if (e.row, e.verdict) == (0, "spare")} == {"a copy of another candidate"}
    # To others the two copies of one text are one negative.
    assert negatives(mined.examples[1]) == ["st0", "st2", "st3", "st4", "st5"]


def test_a_query_is_not_its_own_negative_nor_is_its_picture(tmp_path, encoder):
    paths = []
    for shade in range(4):
        paths.append(tmp_path / f"{shade}.png")
        Image.new("RGB", (4, 4), (shade * 60, 0, 0)).save(paths[-1])
    shown = [Item(images=(path,)) for path in paths]
    examples = [
        Example(Item("in blue", (paths[0],), "Change it."), (Candidate(shown[1], origin="gold"),), "composed"),
        Example(Item(images=(paths[2],), instruction="Same?"), (Candidate(shown[0], origin="gold"),), "composed"),
        Example(Item(text="a word"), (Candidate(shown[2], origin="gold"), Candidate(Item(text="a word"))), "composed"),
    ]
    mined = mine(examples, encoder(dim=4), settings=Mining(keep=9))
    found = [{c.item for c in e.candidates if c.origin == "mined"} for e in mined.examples]
    assert found[0] == {shown[2], Item(text="a word")}  # not the picture it starts from
    assert found[1] == {shown[1], Item(text="a word")}  # not itself
    assert found[2] == {shown[0], shown[1]}


def test_a_query_is_not_given_the_video_that_it_starts_from(encoder):
    film, faster, other = (Item(video=frames) for frames in ((b"1", b"2"), (b"2",), (b"2", b"1")))
    examples = [
        Example(Item("faster", video=film.video), (Candidate(faster, origin="gold"),)),
        Example(Item(text="a word"), (Candidate(film, origin="gold"), Candidate(other, origin="gold"))),
    ]
    mined = mine(examples, encoder(dim=4), settings=Mining(keep=9))
    assert [{c.item for c in e.candidates if c.origin == "mined"} for e in mined.examples] == [{other}, {faster}]


def test_sources_are_kept_apart_unless_told_otherwise(pairs, encoder):
    examples = (*pairs(3, "a"), *pairs(3, "b"))
    apart = mine(examples, encoder(dim=4), settings=Mining(keep=9))
    assert {c.item.text for c in apart.examples[0].negatives} == {"at1", "at2"}
    together = mine(examples, encoder(dim=4), settings=Mining(keep=9, within_source=False))
    assert {c.item.text for c in together.examples[0].negatives} == {"at1", "at2", "bt0", "bt1", "bt2"}
    assert [e.source for e in together.ledger if e.row == 5] == ["b"] * 5


def test_ceiling_and_skip_leave_out_the_top_and_others_take_the_place_of_what_the_ceiling_leaves_out(angled):
    examples, encoder = angled
    settings = Mining(depth=6, keep=9, ceiling=0.99, skip=1)  # cos 5 = 0.996, cos 10 = 0.985
    mined = mine(examples, encoder, settings=settings)
    assert negatives(mined.examples[0]) == ["st3", "st4", "st5", "st6", "st7"]  # st1 by the ceiling, st2 skipped
    assert [(e.rank, e.verdict, e.rule) for e in mined.ledger if e.row == 0] == [
        (0, "spare", "one of the 1 most similar, skipped"),
        *((rank, "kept", "cyclic") for rank in (1, 2, 3, 4, 5)),
    ]


def test_a_ceiling_comes_before_the_depth(encoder):
    """Whatever lies above it, every query gets `depth` candidates as long as there are any below."""
    texts = {f"sq{n}": 0.0 for n in range(30)} | {f"st{n}": 3.0 * n for n in range(30)}  # cos 60 = 0.5: st20 and on
    examples = [Example(Item(text=f"sq{n}"), (Candidate(Item(text=f"st{n}"), origin="gold"),), "s") for n in range(30)]
    mined = mine(examples, encoder(texts), settings=Mining(depth=5, keep=5, ceiling=0.4999))
    assert mined.counts == {}
    assert negatives(mined.examples[0]) == [f"st{n}" for n in range(21, 26)]
    few = mine(examples, encoder(texts), settings=Mining(depth=5, keep=5, ceiling=0.1))  # 84.3 degrees: st29 alone
    assert few.counts == {"fewer chosen than wanted": 29, "nothing retrieved": 1}


def test_a_ceiling_below_everything_leaves_nothing_to_mine(angled):
    examples, encoder = angled
    with pytest.raises(DataError, match="nothing but the positives"):
        mine(examples, encoder, settings=Mining(ceiling=-1.0))


def test_nothing_to_mine(angled):
    _, encoder = angled
    with pytest.raises(DataError, match="there are no examples"):
        mine((), encoder)
    alone = (Example(Item(text="q"), (Candidate(Item(text="t"), origin="gold"),)),)
    with pytest.raises(DataError, match="candidates of other examples"):
        mine(alone, encoder)


def test_a_budget_takes_the_same_share_of_every_source(pairs, encoder):
    examples = (*pairs(40, "a"), *pairs(20, "b"), *pairs(2, "c"))
    settings = Mining(queries=31, keep=1)
    mined = mine(examples, encoder(dim=4), settings=settings)
    found = [e.source for e in mined.examples]
    assert {s: found.count(s) for s in "abc"} == {"a": 20, "b": 10, "c": 1}
    assert mine(examples, encoder(dim=4), settings=settings).examples == mined.examples
    another = mine(examples, encoder(dim=4), settings=Mining(queries=31, keep=1, seed=1))
    assert [e.query for e in another.examples] != [e.query for e in mined.examples]
    rows = {entry.row for entry in mined.ledger}
    assert [examples[row].query for row in sorted(rows)] == [e.query for e in mined.examples]
    # The pool is all of the training set, not the chosen part.
    few = mine(examples, encoder(dim=4), settings=Mining(queries=1, keep=99)).examples
    assert [(e.source, len(e.negatives)) for e in few] == [("a", 39), ("b", 19), ("c", 1)]
    assert len(mine(examples, encoder(dim=4), settings=Mining(queries=62, keep=1)).examples) == 62


def test_selectors_choose_by_rank(angled):
    examples, encoder = angled
    cyclic = mine(examples, encoder, settings=Mining(keep=3, selector=Cyclic(4)))
    assert negatives(cyclic.examples[0]) == ["st1", "st5", "st9"]
    assert {e.rule for e in cyclic.ledger if e.verdict == "kept"} == {"cyclic"}
    assert {e.rule for e in cyclic.ledger if e.verdict == "spare"} == {"not selected"}
    random = [mine(examples, encoder, settings=Mining(keep=3, selector=AtRandom(), seed=s)).examples for s in (0, 0, 1)]
    assert random[0] == random[1] != random[2]
    assert len({tuple(negatives(e)) for e in random[0]}) > 3  # a draw of its own for every query


def test_settings_that_cannot_be_meant():
    for wrong, words in (
        ({"depth": 0}, "depth and keep must be at least 1, got 0 and 8"),
        ({"keep": 0}, "got 50 and 0"),
        ({"depth": 5, "skip": 5}, r"skip \(5\) must be 0 or more and below depth \(5\)"),
        ({"skip": -1}, r"skip \(-1\)"),
        ({"judged": 0}, "judged must be at least 1, or None for all, got 0"),
        ({"queries": -3}, "queries must be at least 1"),
    ):
        with pytest.raises(RecipeError, match=words):
            Mining(**wrong)


def test_what_was_mined_can_be_written_and_read(angled, judging, tmp_path):
    examples, encoder = angled
    mined = mine(examples, encoder, judging(lambda q, i: 4.0 if q.text[2:] == i.text[2:] else -4.0), settings=Mining(keep=2))
    mined.write(tmp_path, tmp_path)
    assert tuple(read_examples(tmp_path / "examples.jsonl")) == mined.examples
    back = read_ledger(tmp_path / "ledger.parquet")
    assert [(e.row, e.rank, e.verdict) for e in back] == [(e.row, e.rank, e.verdict) for e in mined.ledger]
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["calibration"]["auc"] == 1.0
    assert told["ledger"] == {"spare: not selected": 70, "kept: cyclic": 20}
    assert told["queries"] == {}
    about = ledger.about(tmp_path / "ledger.parquet")
    assert (about["embedder"], about["judge"], about["settings"]["depth"]) == ("fake", "judge", 50)
