"""What is done with an artifact of mining: looked at, chosen from again, exported. All by the command line."""

import json
import re
import sys

import numpy as np
import pytest

from hardwon import artifacts, cli
from hardwon.data import read
from hardwon.items import Candidate, Example, Item, write_examples
from hardwon.mining import Hardest, Mining, mine

RECIPE = """
from hardwon.mining import Hardest, Mining
from hardwon.stages import Reselect

def recipe():
    return Reselect("again", negatives="negatives", data={data!r}, settings=Mining(depth=6, keep=1, beta=0.3, min_auc=0.0,
                    selector=Hardest()))
"""


class Fakes:
    """Vectors and log-odds at random, by content."""

    fingerprint, dim = "fakes", 4

    def encode(self, items, *, progress=""):
        made = np.stack([np.random.default_rng(int(item.content[:8], 16)).normal(size=4) for item in items])
        return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)

    def score_pairs(self, pairs, *, progress=""):
        return np.array(
            [np.random.default_rng(int(q.key[:8], 16) ^ int(i.key[:8], 16)).normal(0, 2) for q, i in pairs], dtype=np.float32
        )


@pytest.fixture
def home(tmp_path, pictures, monkeypatch):
    """A workspace whose artifact `negatives` was mined in shapes.jsonl, beside the pictures."""
    import tiny

    here = tiny.draw_all(tmp_path / "pictures")
    examples = [
        Example(Item(text=f"{caption} <b>"), (Candidate(Item(images=(path,)), origin="gold"),), "shapes")
        for caption, path in here.items()
    ]
    write_examples(tmp_path / "shapes.jsonl", examples, tmp_path)
    data = str(tmp_path / "shapes.jsonl")
    old = Mining(depth=6, keep=3, beta=0.1, min_auc=0.0, selector=Hardest())
    inputs = {"stage": {"out": "negatives", "data": data, "root": "", "settings": artifacts.plain(old)}, "parents": {}}
    with artifacts.writing(tmp_path / "run/negatives", "negatives", inputs) as draft:
        mine(read(data).examples, Fakes(), Fakes(), settings=old).write(draft.path, tmp_path)
    (tmp_path / "again.py").write_text(RECIPE.format(data=data))
    return tmp_path


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hardwon", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        told = capsys.readouterr()
        return code, " ".join(told.out.split()), " ".join(told.err.split())

    return run


def test_a_stage_chooses_again(home, call):
    code, _, err = call("mine", home / "again.py", "--out", home / "run")
    assert code == 0
    assert "chosen again without a model" in err
    new = Mining(depth=6, keep=1, beta=0.3, min_auc=0.0, selector=Hardest())
    expected = mine(read(home / "shapes.jsonl").examples, Fakes(), Fakes(), settings=new)
    expected.write(home, home)
    for name in ("examples.jsonl", "ledger.parquet", "summary.json"):
        assert (home / "run/again" / name).read_bytes() == (home / name).read_bytes()
    assert artifacts.load(home / "run/again").stats["kept"] == expected.stats["kept"]
    # It is an artifact like any other: a change is worked off, and nothing else.
    assert "done before" in call("mine", home / "again.py", "--out", home / "run")[2]
    code, _, err = call("mine", home / "again.py", "--out", home / "run", "--set", "again.settings.depth=9")
    assert (code, "only 6 candidates were retrieved" in err) == (1, True)


def test_inspect_prints_and_writes_a_page(home, call):
    code, out, _ = call("inspect", home / "run/negatives")
    assert code == 0
    for words in ("20 queries", "kept: hardest", "judge: AUC", "gold pairs", "similarity of", "look at these first", "whole"):
        assert words in out, words
    page = (home / "run/negatives-inspect.html").read_text()
    assert f"file://{home / 'run/negatives-inspect.html'}" in out
    assert page.count("<article") == 20
    assert "red square &lt;b&gt;" in page and "<b>red" not in page
    assert page.count("data:image/webp") == 20  # every picture once
    assert "not in the data any more" not in page
    assert artifacts.load(home / "run/negatives")  # left as it was


def test_inspect_of_what_no_stage_made(home, call):
    mine(read(home / "shapes.jsonl").examples, Fakes(), Fakes(), settings=Mining(min_auc=0.0)).write(home / "made", home)
    code, _, err = call("inspect", home / "made")
    assert (code, "no stage made it: say where with --root" in err) == (1, True)
    assert call("inspect", home / "made", "--root", home)[0] == 0
    assert "not in the data any more" not in (home / "made-inspect.html").read_text()


def test_inspect_shows_first_what_the_fallback_kept_though_likely_false(home, call):
    settings = Mining(depth=6, keep=3, beta=0.6, min_auc=0.0, fallback="paper")
    mined = mine(read(home / "shapes.jsonl").examples, Fakes(), Fakes(), settings=settings)
    mined.write(home / "made", home)
    drawn = {e.row for e in mined.ledger if e.rule == "at random, for none was left"}
    assert 0 < len(drawn) == mined.counts["filled at random, graded 1.0"] < 20
    assert call("inspect", home / "made", "--root", home)[0] == 0
    page = (home / "made-inspect.html").read_text()
    assert page.count("likely false negative, kept all the same") == len(drawn)
    assert {int(row) for row in re.findall(r'data-row="(\d+)"', page)[: len(drawn)]} == drawn


def test_inspect_samples_unless_told_otherwise(home, call, monkeypatch):
    from hardwon.stages import inspection

    whole = inspection.inspect_negatives
    monkeypatch.setattr(inspection, "inspect_negatives", lambda *a, most, **k: whole(*a, most=most and 5, **k))
    call("inspect", home / "run/negatives", "--out", home / "i.html")
    assert (home / "i.html").read_text().count("<article") == 5
    call("inspect", home / "run/negatives", "--out", home / "i.html", "--all")
    assert (home / "i.html").read_text().count("<article") == 20


def test_inspect_when_the_data_has_moved(home, call):
    (home / "moved").mkdir()
    (home / "pictures").rename(home / "moved/pictures")
    (home / "shapes.jsonl").unlink()
    assert call("inspect", home / "run/negatives", "--root", home / "moved")[0] == 0
    assert "not in the data any more" not in (home / "run/negatives-inspect.html").read_text()
    assert call("inspect", home / "run/negatives")[0] == 0  # pictures that cannot be found are no reason to fail
    assert "not in the data any more" in (home / "run/negatives-inspect.html").read_text()


def test_export_to_unime_comes_back(home, call):
    code, out, err = call("export", home / "run/negatives", "--to", "unime", "--out", home / "train.json", "--negatives", "2")
    assert (code, err) == (0, "")
    rows = json.loads((home / "train.json").read_text())
    assert f"{len(rows)} rows in" in out
    examples = [e for e in read(home / "run/negatives/examples.jsonl", root=home) if e.negatives]
    again = read(home / "train.json").examples
    assert len(again) == len(rows) == len(examples)
    for before, after in zip(examples, again, strict=True):
        assert (after.query, after.candidates[0].item) == (before.query, before.gold[0])
        assert {c.item for c in after.negatives} <= {c.item for c in before.negatives}


def test_export_to_unime_says_what_has_no_grade(home, call):
    examples = read(home / "shapes.jsonl").examples
    given = [Candidate(Item(text=f"given {n}")) for n in range(4)]  # of which at most one is retrieved for its own query
    examples = (examples[0].adding(given), *examples[1:])
    inputs = {"stage": {"out": "given", "data": str(home / "shapes.jsonl"), "root": ""}, "parents": {}}
    with artifacts.writing(home / "run/given", "negatives", inputs) as draft:
        mined = mine(examples, Fakes(), Fakes(), settings=Mining(depth=1, min_auc=0.0))
        mined.write(draft.path, home)
    ungraded = sum(c.relevance is None for c in mined.examples[0].candidates)
    code, out, _ = call("export", home / "run/given", "--to", "unime", "--out", home / "train.json")
    assert (code, ungraded in (3, 4)) == (0, True)
    assert f"; {ungraded} negatives left out, since no judge graded them" in out
    assert "positive left out" not in out
    assert len(read(home / "train.json").examples) == len(json.loads((home / "train.json").read_text()))


@pytest.mark.parametrize(
    ("to", "columns"), [("tuples", ["query", "positive", "negative_1"]), ("lists", ["query", "docs", "labels"])]
)
def test_export_for_sentence_transformers(home, call, to, columns):
    code, out, err = call("export", home / "run/negatives", "--to", to, "--out", home / "rows.jsonl", "--source", "shapes")
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    assert f"{len(rows)} rows in" in out
    assert list(rows[0])[:3] == columns


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--to", "tuple", "--out", "x.jsonl"), "unknown form 'tuple': did you mean 'tuples'"),
        (("--to", "unime", "--out", "x.jsonl"), "a name that ends in .json"),
        (("--to", "lists", "--out", "x.csv"), "unknown kind of file '.csv'"),
        (("--to", "lists", "--out", "x.jsonl", "--negatives", "3"), "leave --negatives out"),
        (("--to", "tuples", "--out", "x.jsonl", "--negatives", "0"), "must be at least 1"),
        (("--to", "tuples", "--out", "x.jsonl", "--source", "shape"), "unknown source 'shape': did you mean 'shapes'"),
    ],
)
def test_exports_that_cannot_be_meant(home, call, arguments, reason, monkeypatch):
    monkeypatch.chdir(home)
    code, _, err = call("export", "run/negatives", *arguments)
    assert code == 1
    assert reason in err
