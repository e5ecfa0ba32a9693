"""Choosing again from a ledger gives what mining would have given, to the byte, and asks no model."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hardwon.errors import ArtifactError, DataError, HardwonError, JudgeError, RecipeError
from hardwon.items import Candidate, Example, Item
from hardwon.mining import AtRandom, Cyclic, Hardest, Margin, Mining, TopK, mine, reselect

WIDE = Mining(depth=8, keep=2, min_auc=0.0)
SELECTORS = (Cyclic(), Cyclic(2), Hardest(), AtRandom(), TopK(3), Margin(0.1), Margin(relative=0.3, then=AtRandom()))
FILES = ("examples.jsonl", "ledger.parquet", "summary.json")

changes = st.fixed_dictionaries(
    {
        "depth": st.integers(4, 8),
        "skip": st.integers(0, 2),
        "judged": st.one_of(st.none(), st.integers(1, 8)),
        "ceiling": st.one_of(st.none(), st.sampled_from([0.9, 0.5, -0.5])),
        "keep": st.integers(1, 5),
        "beta": st.sampled_from([0.0, 0.1, 0.5, -0.5]),
        "selector": st.sampled_from(range(len(SELECTORS))),
        "fallback": st.sampled_from(["none", "paper"]),
        "rest": st.booleans(),
    }
)


def files(made, folder):
    folder.mkdir(exist_ok=True)
    made.write(folder, folder)
    return [(folder / name).read_bytes() for name in FILES]


def outcome(work, folder):
    """What is written, or the words of the error."""
    try:
        return files(work(), folder)
    except HardwonError as error:
        return type(error)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(old=changes, new=changes, how=st.tuples(st.booleans(), st.sampled_from([None, 5])))
def test_the_same_bytes_as_mining_or_a_refusal(old, new, how, pairs, encoder, judging, by_hash, tmp_path):
    """Settings that look at more than was judged are refused; nothing else is, and no positive ever comes back."""
    judge, queries = how
    old, new = (Mining(**(d | {"selector": SELECTORS[d["selector"]]}), queries=queries, min_auc=0.0) for d in (old, new))
    examples = (*pairs(7, "a", related={0: ["at3"]}), *pairs(2, "b"))
    negatives = [Candidate(Item(text="at2")), Candidate(Item(text="at5", instruction="x"))]
    positives = [Candidate(Item(text=text), origin="gold") for text in ("at6", "a third one", "at6")]
    examples = (examples[0].adding(negatives), examples[1].adding(positives), *examples[2:])
    model, rule = encoder(dim=3), judging(by_hash) if judge else None

    def again():
        return mine(examples, model, judging(by_hash) if judge else None, settings=new)

    try:
        made = mine(examples, model, rule, settings=old)
    except DataError:
        return  # nothing to mine with the old settings: no ledger
    files(made, tmp_path / "old")
    expected = outcome(again, tmp_path / "new")
    found = outcome(lambda: reselect(tmp_path / "old", examples, settings=new), tmp_path / "reselected")
    if found is RecipeError:
        assert more(made, old, new, judge)
        return
    assert found == expected
    assert not more(made, old, new, judge)


def more(made, old, new, judge):
    """Whether the new settings look, or may look, at candidates of any query that the old ones did not."""
    if new.depth > old.depth or (old.ceiling or np.inf) < (new.ceiling or np.inf):
        return True
    for row in {e.row for e in made.ledger}:
        lines = sorted((e for e in made.ledger if e.row == row), key=lambda e: e.rank)
        below = [e for e in lines if new.ceiling is None or e.similarity < new.ceiling]
        if len(lines) == old.depth and len(below) < new.depth:
            return True
        was, will = lines[old.skip :][: old.judged], below[: new.depth][new.skip :][: new.judged]
        if judge and not {e.candidate for e in will} <= {e.candidate for e in was}:
            return True
    return False


def test_a_lower_ceiling_with_less_depth_takes_the_next_ones(angled, judging, by_hash, tmp_path):
    """Of nine candidates two or three lie above it."""
    examples, encoder = angled
    made = mine(examples, encoder, judging(by_hash), settings=WIDE)
    lower = dataclasses.replace(WIDE, depth=5, ceiling=0.98)
    found = files(reselect(made, examples, settings=lower), tmp_path / "reselected")
    again = mine(examples, encoder, judging(by_hash), settings=lower)
    assert found == files(again, tmp_path / "mined")
    assert {e.rank for e in again.ledger} == set(range(5)) and max(e.similarity for e in again.ledger) < 0.98
    with pytest.raises(RecipeError, match=r"has 5 candidates of example 0, and depth is to be 8: others have to take"):
        reselect(made, examples, settings=dataclasses.replace(WIDE, ceiling=0.95))


def test_what_was_said_of_several_positives_is_kept(angled, judging, by_hash, tmp_path):
    examples, encoder = angled
    positives = [Candidate(Item(text=text), origin="gold") for text in ("in other words", "a third one", "in other words")]
    examples = (examples[0].adding(positives), *examples[1:])
    mine(examples, encoder, judging(by_hash), settings=WIDE).write(tmp_path / "old", tmp_path)
    for beta in (-0.5, 0.0, 0.3):
        new = dataclasses.replace(WIDE, beta=beta, keep=5)
        expected = mine(examples, encoder, judging(by_hash), settings=new)
        assert len({e.bar for e in expected.ledger if e.row == 0}) == 1
        assert files(reselect(tmp_path / "old", examples, settings=new), tmp_path / "x") == files(expected, tmp_path / "y")


def test_pictures_that_lie_in_several_files_keep_their_names(encoder, tmp_path):
    for name in ("one", "two", "three"):
        Image.new("RGB", (4, 4), "red" if name != "three" else "blue").save(tmp_path / f"{name}.png")
    items = [Item(images=(tmp_path / f"{name}.png",)) for name in ("one", "two", "three")]
    examples = [
        Example(Item(text=f"q{n}"), (Candidate(item, origin="gold"),), source)
        for n, (item, source) in enumerate(zip((items[0], items[2], items[1], items[2]), "aabb", strict=True))
    ]
    made = mine(examples, encoder(dim=3), settings=WIDE)
    assert files(reselect(made, examples, settings=WIDE), tmp_path / "x") == files(made, tmp_path / "y")
    texts = (tmp_path / "x/examples.jsonl").read_text().splitlines()
    assert "one.png" in texts[1] and "two.png" in texts[3]


def test_a_judgement_that_is_missing_stays_missing(angled, judging, by_hash):
    """As a budget or a server leaves them; the lines are made by hand."""
    examples, encoder = angled
    made = mine(examples, encoder, judging(by_hash), settings=WIDE)
    ledger = [
        dataclasses.replace(e, yes=None, no=None, grade=None, problem="HTTP 500" if e.rank == 1 else "") if e.rank < 2 else e
        for e in made.ledger
    ]
    again = reselect(dataclasses.replace(made, ledger=tuple(ledger)), examples, settings=WIDE)
    assert [e.rule for e in again.ledger if e.rank < 2] == ["beyond the budget", "no usable judgement"] * 10
    assert [e.problem for e in again.ledger if e.rank < 2] == ["", "HTTP 500"] * 10


def test_what_needs_a_model_is_refused(angled, judging, by_hash):
    examples, encoder = angled
    old = dataclasses.replace(WIDE, judged=3, ceiling=0.99)
    made = mine(examples, encoder, judging(by_hash), settings=old)
    for change, words in (
        ({"depth": 9}, "depth is to be 9, but only 8 candidates were retrieved: mine again"),
        ({"judged": 4}, r"never asked about \(example 0, rank 3\): mine again"),
        ({"ceiling": 1.5}, r"ceiling was 0\.99 .* and is to be 1\.5: what lies above it was never retrieved"),
        ({"ceiling": None}, r"is to be None: what lies above it was never retrieved"),
        ({"seed": 1}, "seed was 0 when the ledger was made and is to be 1"),
        ({"queries": 3}, "queries was None"),
        ({"within_source": False}, "within_source was True"),
    ):
        with pytest.raises(RecipeError, match=words):
            reselect(made, examples, settings=dataclasses.replace(old, **change))
    with pytest.raises(JudgeError, match="lower min_auc"):
        reselect(made, examples, settings=dataclasses.replace(old, min_auc=1.0))
    with pytest.raises(DataError, match="nothing to choose from"):
        reselect(mine(examples, encoder, settings=Mining(depth=20)), examples, settings=Mining(depth=20, ceiling=-1.0))


def test_other_examples_are_refused(angled, judging, by_hash, pairs):
    examples, encoder = angled
    made = mine(examples, encoder, judging(by_hash), settings=WIDE)
    gold = Candidate(Item(text="st1"), origin="gold")  # has become known to be right
    for others in (pairs(10, "other"), (examples[1], examples[0], *examples[2:]), (examples[0].adding([gold]), *examples[1:])):
        with pytest.raises(DataError, match="example 0 is not what it was when the ledger was made"):
            reselect(made, others, settings=WIDE)
    with pytest.raises(DataError, match="names example 5: it was made for other examples than these 5"):
        reselect(made, examples[:5], settings=WIDE)


def test_a_folder_without_a_ledger(tmp_path, angled):
    with pytest.raises(ArtifactError, match=r"holds no ledger\.parquet"):
        reselect(tmp_path, angled[0], settings=WIDE)
