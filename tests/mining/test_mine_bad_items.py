"""What cannot be read does not stop a run that may go on without it: a real model, real damage, and nothing made up."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny

from hardwon.errors import BadItem, BadItems, ModelError, RecipeError, TooLarge
from hardwon.items import Candidate, Item, read_examples, write_examples
from hardwon.mining import Hardest, Mining, mine, read_ledger, reselect
from hardwon.models import Embedder, Judgements, Reranker, cached
from hardwon.stages import Mine, Workspace

SKIP = Mining(depth=6, keep=2, min_auc=0.0, selector=Hardest(), on_error="skip", max_bad_fraction=0.2)


@pytest.fixture
def shapes(pictures):
    return tiny.examples(pictures)


@pytest.fixture
def spoilt(shapes, tmp_path):
    """Twenty examples, three of them with a query or gold that cannot be read, and what is left without."""
    whole = bytearray(shapes[0].gold[0].images[0].read_bytes())
    start = whole.index(b"IDAT") + 8
    for n, name in enumerate(("one", "two")):
        whole[start : start + 20] = bytes([n] * 20)  # header and end are good
        (tmp_path / f"{name}.png").write_bytes(bytes(whole))
    one, two, gone = (Item(images=(tmp_path / f"{name}.png",)) for name in ("one", "two", "gone"))
    made, left = list(shapes), list(shapes)
    made[1] = replace(shapes[1], query=one)
    made[4] = replace(shapes[4], candidates=(Candidate(gone, origin="gold"), *shapes[4].negatives))
    made[9] = replace(shapes[9], candidates=(Candidate(two, origin="gold"), *shapes[9].negatives))
    made[6] = shapes[6].adding([Candidate(two), Candidate(gone)])
    places = {"'<one.png>'": "query of example 2", "'<gone.png>'": "gold of example 5 and 1 more"}
    places |= {"'<two.png>'": "negative of example 7 and 1 more"}
    return tuple(made), tuple(e for n, e in enumerate(left) if n not in (1, 4, 9)), places


class Odd:
    """Log-odds by key, and a refusal of some items."""

    fingerprint = "odd"

    def __init__(self, refused=()):
        self.refused, self.asked = refused, 0

    def judge(self, pairs, *, progress=""):
        bad = {item for pair in pairs for item in pair if item.text in self.refused}
        if bad:
            raise BadItems([BadItem(item, "too long for this model") for item in bad], f"{len(pairs)} pairs")
        self.asked += len(pairs)
        odds = np.array([int(q.key[:4], 16) % 13 - int(i.key[:4], 16) % 7 for q, i in pairs], dtype=np.float32)
        return Judgements(odds, np.zeros_like(odds))


@pytest.fixture
def counted(monkeypatch):
    made, encode = [], Embedder.encode
    monkeypatch.setattr(Embedder, "encode", lambda self, items, **k: made.append(len(items)) or encode(self, items, **k))
    return made


def test_all_of_it_is_named_by_default(vlm, spoilt, counted, monkeypatch):
    monkeypatch.setattr(cached, "CHUNK", 5)  # what is damaged lies in several chunks
    with pytest.raises(BadItems, match=r'20 examples cannot be used(.|\n)*on_error="skip" in the settings of the mini') as e:
        mine(spoilt[0], vlm)
    assert {bad.item.label: bad.where for bad in e.value.items} == {"'<gone.png>'": spoilt[2]["'<gone.png>'"]}
    assert not counted
    there = tuple(replace(e, candidates=tuple(c for c in e.candidates if "gone" not in c.item.label)) for e in spoilt[0])
    whole = [example for example in there if example.gold]
    with pytest.raises(BadItems) as error:
        mine(whole, vlm)
    assert {bad.item.label for bad in error.value.items} == {"'<one.png>'", "'<two.png>'"}


@pytest.mark.parametrize("chunk", [512, 5])
def test_a_run_without_it_is_a_run_on_the_rest(vlm, spoilt, tmp_path, monkeypatch, capsys, counted, chunk):
    monkeypatch.setattr(cached, "CHUNK", chunk)
    examples, left, places = spoilt
    expected = mine(left, vlm, Odd(), settings=SKIP)
    capsys.readouterr()
    mined = mine(examples, vlm, Odd(), settings=SKIP, store=tmp_path / "store")
    assert "3 items left out, and 3 of 20 examples with them" in " ".join(capsys.readouterr().err.split())
    assert [replace(e, row=0) for e in mined.ledger] == [replace(e, row=0) for e in expected.ledger]
    assert mined.examples == expected.examples
    assert {told.split(": ")[0]: told.split(": ")[1] for told in mined.left_out} == {p: label for label, p in places.items()}
    mined.write(tmp_path / "made", tmp_path.parent)
    assert json.loads((tmp_path / "made/summary.json").read_text())["left out"] == list(mined.left_out)
    assert [len(e.candidates) for e in read_examples(tmp_path / "made/examples.jsonl")] == [
        len(e.candidates) for e in mined.examples
    ]
    # Again: what is known is not computed again, what is bad is found to be bad again.
    del counted[:]
    judge = Odd()
    assert mine(examples, vlm, judge, settings=SKIP, store=tmp_path / "store") == mined
    assert judge.asked == 0
    assert sum(counted) <= 4  # only what cannot be embedded, and what stood beside that in its examples
    # Other thresholds need no model, and the same examples.
    new = replace(SKIP, keep=1, beta=0.4)
    again = reselect(tmp_path / "made", examples, settings=new)
    assert again.examples == mine(left, vlm, Odd(), settings=new).examples
    assert again.left_out == mined.left_out


def test_too_much_of_it_is_an_error_all_the_same(vlm, spoilt):
    with pytest.raises(BadItems, match=r"3 examples would be left out, but on_error=\"skip\" allows 10.0% of them") as error:
        mine(spoilt[0], vlm, settings=replace(SKIP, max_bad_fraction=0.1))
    assert len(error.value.items) == 3
    with pytest.raises(RecipeError, match="max_bad_fraction is a share between 0 and 1, got 2"):
        Mining(max_bad_fraction=2.0)


def test_a_model_of_text_leaves_pictures_out(text_model, shapes, tmp_path):
    texts = tiny.texts()
    mixed = (*(replace(e, source="texts") for e in shapes[:1]), *texts)
    with pytest.raises(BadItems, match="3 items of"):
        mine(mixed, text_model)
    mined = mine(mixed, text_model, settings=SKIP)
    assert mined.examples == mine(texts, text_model, settings=SKIP).examples
    assert len(mined.left_out) == 3


def test_what_the_judge_cannot_read_has_no_answer_and_the_reason(text_model):
    texts = tiny.texts()
    bad = texts[3].negatives[0].item.text
    with pytest.raises(BadItems, match="too long"):
        mine(texts, text_model, Odd({bad}), settings=replace(SKIP, on_error="raise"))
    mined = mine(texts, text_model, Odd({bad}), settings=replace(SKIP, depth=20, max_unusable=0.2))
    key = texts[3].negatives[0].item.key
    mine_of = [e for e in mined.ledger if e.candidate == key]
    assert {(e.verdict, e.rule, e.problem, e.grade) for e in mine_of if e.gold_grade is not None} == {
        ("spare", "no usable judgement", "too long for this model", None)
    }
    others = [e for e in mined.ledger if e.candidate != key]
    assert all(e.grade is not None for e in others)
    assert all(c.item.key != key for e in mined.examples for c in e.candidates if c.origin == "mined")


class Odds:
    """A scorer that fails on whole batches, because of some pairs."""

    fingerprint = "odds"

    def __init__(self, refused, error=ModelError):
        self.refused, self.error, self.asked = refused, error, []

    def score_pairs(self, pairs, *, progress=""):
        bad = [pair for pair in pairs if (pair[0].key, pair[1].key) in self.refused]
        if bad:
            raise self.error(f"no room for the text of {bad[0][1].text}")
        self.asked += [(query.key, item.key) for query, item in pairs]
        return Odd().judge(pairs).odds


def test_pairs_that_a_reranker_cannot_read_together_cost_themselves_alone(text_model, tmp_path):
    texts = tiny.texts()
    wide = replace(SKIP, depth=20, max_unusable=0.2)
    whole = mine(texts, text_model, Odds(()), settings=wide)
    refused = {(texts[e.row].query.key, e.candidate) for e in whole.ledger[3:40:12]}
    with pytest.raises(ModelError, match="no room"):
        mine(texts, text_model, Odds(refused), settings=replace(wide, on_error="raise"))
    with pytest.raises(TooLarge):  # memory may be larger next time
        mine(texts, text_model, Odds(refused, TooLarge), settings=wide)
    judge, again = Odds(refused), Odds(refused)
    mined = mine(texts, text_model, judge, settings=wide, store=tmp_path)
    without = {(texts[e.row].query.key, e.candidate): e.problem for e in mined.ledger if e.problem}
    assert without.keys() == refused
    assert all(why.startswith("no room for the text of") for why in without.values())
    known = {(e.row, e.candidate): e.grade for e in whole.ledger}
    assert all(e.grade == known[e.row, e.candidate] for e in mined.ledger if not e.problem)
    assert len(judge.asked) == len(set(judge.asked))  # nobody is asked twice
    assert mine(texts, text_model, again, settings=wide, store=tmp_path) == mined
    assert not again.asked  # the good ones of a batch were kept


def test_a_stage_goes_on_with_reranker_and_blend(tiny_vlm, pictures, spoilt, tmp_path):
    root = tmp_path / "data"
    here = tiny.draw_all(root / "pictures")
    examples = list(tiny.examples(here))
    broken = next(iter(here.values()))
    broken.write_bytes(broken.read_bytes()[:70] + bytes(30) + broken.read_bytes()[100:])
    write_examples(root / "pairs.jsonl", examples, root)
    workspace = Workspace(tmp_path / "run")
    Reranker.start_from(Embedder.load(tiny_vlm, device="cpu"), layers=1).save(tmp_path / "reranker")
    judged = {"judge": str(tmp_path / "reranker"), "calibrate": str(root / "pairs.jsonl")}
    settings = replace(SKIP, on_error="raise", max_bad_fraction=0.1)
    with pytest.raises(BadItems):
        workspace.run(Mine("strict", str(tiny_vlm), str(root / "pairs.jsonl"), settings=settings, **judged))
    manifest = workspace.run(
        Mine("lax", str(tiny_vlm), str(root / "pairs.jsonl"), settings=settings, on_error="skip", **judged)
    )
    assert "1 items left out" in manifest.stats["result"]
    assert len({e.row for e in read_ledger(workspace.root / "lax/ledger.parquet")}) == len(examples) - 1
