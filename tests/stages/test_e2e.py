"""The whole loop on pairs of one's own: a tiny model, a recipe in a file, and the search at the end."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hardwon import artifacts, cli
from hardwon.evaluation import Benchmark, Task, write_benchmark
from hardwon.items import Item, read_examples
from hardwon.losses import JudgeAlignment
from hardwon.mining import read_ledger
from hardwon.models import Reranker
from hardwon.search import Fused
from hardwon.training.batches import batches

# The candidate that tells a judge what to answer is longer than the 64 tokens of the tiny model leave room for.
pytestmark = pytest.mark.filterwarnings("ignore:query and candidate come to more than the 64 tokens")

RECIPE = """
from hardwon.losses import InfoNCE, JudgeAlignment, Listwise, Pairwise
from hardwon.mining import Hardest, Mining
from hardwon.stages import BuildIndex, Evaluate, Mine, Query, Train, WriteReport
from hardwon.training import Settings

MODEL, DATA, ROOT = {model!r}, "pairs.jsonl", {root!r}


def recipe():
    few = Settings(batch_size=6, negatives=2, random_negatives=1, learning_rate=1e-3)
    return (
        Train("round1", model=MODEL, data=DATA, loss=InfoNCE(temperature=0.1), steps=4, settings=few),
        Mine("confusions", model="round1/model", data=DATA, settings=Mining(depth=6, keep=3, skip=1)),
        Train("reranker", task="reranker", model="round1/model", data="confusions/examples.jsonl", root=ROOT,
              loss=Pairwise() + Listwise(), steps=3, settings=few),
        Mine("negatives", model="round1/model", data=DATA, judge="reranker/model",
             settings=Mining(depth=5, keep=3, selector=Hardest(), min_auc=0.0)),
        Train("round2", model="round1/model", data="negatives/examples.jsonl", root=ROOT,
              loss=JudgeAlignment(temperature=0.1) + InfoNCE(temperature=0.1), steps=3, settings=few),
        Evaluate("eval-start", model=MODEL, benchmark="test", label="start"),
        Evaluate("eval-reranked", model="round2/model", benchmark="test", label="reranked", rerank="reranker/model",
                 depth=4, validation="held-out"),
        BuildIndex("index", model="round2/model", items="pictures"),
        WriteReport("report", title="Shapes [1]", subtitle="Own pairs.", data=DATA, evaluations=("eval-start", "eval-reranked"),
                    trainings=("round1", "reranker", "round2"), negatives="negatives", index="index",
                    queries=(Query("by words", text="a red square"), Query("by picture", picture="pictures/red-bar.png")),
                    models=(("round 1", "round1/model"), ("round 2", "round2/model")), benchmark="test", tasks=("find",)),
    )
"""
OUTS = ["round1", "confusions", "reranker", "negatives", "round2", "eval-start", "eval-reranked", "index", "report"]


def benchmark(captions, pictures):
    """Captions ask for pictures."""
    corpus = tuple(Item(images=(path,)) for path in pictures.values())
    places = {caption: place for place, caption in enumerate(pictures)}
    queries = tuple(Item(text=f"a {caption}") for caption in captions)
    return Benchmark("shapes", (Task("find", "retrieval", "ind", queries, corpus, tuple((places[c],) for c in captions)),))


def call(*arguments):
    sys.argv = ["hardwon", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture(scope="module")
def done(tiny_vlm, tmp_path_factory):
    """The folder where the recipe was run once, and the exit code."""
    import tiny

    home = tmp_path_factory.mktemp("own")
    pictures = tiny.draw_all(home / "pictures")
    captions = list(pictures)
    rows = [
        {"query": f"a {caption}", "positive_image": f"pictures/{pictures[caption].name}", "source": "shapes"}
        for caption in captions[:14]
    ]
    # As people write them: one row with a negative of its own, one that is a picture on both sides.
    rows[0]["negative"] = {"image": "pictures/red-circle.png"}
    rows.append({"query_image": "pictures/red-bar.png", "positive_image": "pictures/blue-bar.png", "source": "shapes"})
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_benchmark(benchmark(captions[14:], pictures), home / "test")
    write_benchmark(benchmark(captions[:6], pictures), home / "held-out")
    (home / "own.py").write_text(RECIPE.format(model=str(tiny_vlm), root=str(home)))
    before, arguments = Path.cwd(), sys.argv
    os.chdir(home)
    try:
        yield home, call("run", "own.py", "--out", "runs/own")
    finally:
        os.chdir(before)
        sys.argv = arguments


def test_every_stage_leaves_a_whole_artifact(done):
    home, code = done
    assert code == 0
    kinds = [artifacts.load(home / "runs/own" / out).kind for out in OUTS]
    assert kinds == ["model", "negatives", "model", "negatives", "model", "evaluation", "evaluation", "index", "report"]
    left = {p.name for p in (home / "runs/own").iterdir()}
    assert left == {*OUTS, "features", "judgements"}  # nothing else is written beside them
    for model in ("round1", "reranker", "round2"):
        assert not (home / "runs/own" / model / "checkpoint").exists()


def test_mining_with_the_judge(done):
    home, _ = done
    folder = home / "runs/own/negatives"
    examples = list(read_examples(folder / "examples.jsonl", home))
    ledger = read_ledger(folder / "ledger.parquet")
    assert len(examples) == 15
    assert len(ledger) == 15 * 5
    assert all(entry.grade is not None for entry in ledger)
    by_row = {row: [e for e in ledger if e.row == row] for row in range(15)}
    for row, example in enumerate(examples):
        known = {item.content for item in example.gold} | example.related
        mined = [c for c in example.candidates if c.origin == "mined"]
        assert not known & {c.item.content for c in mined}
        assert all(c.relevance is not None for c in mined)
        assert len(mined) == min(3, sum(e.verdict != "rejected" for e in by_row[row]))
    stats = artifacts.load(folder).stats
    assert stats["kept"] == sum(e.verdict == "kept" for e in ledger)
    assert stats["rejected"] == sum(e.verdict == "rejected" for e in ledger)
    assert not list(folder.glob("judge-*"))


def test_the_rerankers_scores_are_the_soft_labels_of_the_next_round(done):
    """What it says of a pair, as a probability, is what round 2 learns the distribution over its negatives from."""
    home, _ = done
    reranker = Reranker.load(home / "runs/own/reranker/model", device="cpu")
    examples = list(read_examples(home / "runs/own/negatives/examples.jsonl", home))
    pairs = [(e.query, c.item) for e in examples for c in e.candidates if c.relevance is not None]
    given = np.array([c.relevance for e in examples for c in e.candidates if c.relevance is not None])
    assert len(pairs) > 15
    assert any(c.relevance is not None for e in examples for c in e.candidates if c.origin == "gold")
    assert given == pytest.approx(1 / (1 + np.exp(-reranker.score_pairs(pairs).astype(float))), abs=1e-5)
    (batch,) = batches(examples, size=6, steps=1, negatives=2)
    targets = batch.targets[:]
    scores = torch.zeros(targets.gold.shape, requires_grad=True)
    JudgeAlignment(temperature=0.1)(scores, targets).backward()
    rows = [row for row in range(6) if targets.judged[row].sum() > 1]
    assert rows
    for row in rows:  # a step downhill moves the query towards the order of the judge
        judged = targets.judged[row]
        step, liked = -scores.grad[row][judged], targets.relevance[row][judged]
        assert step[liked.argmax()] > step[liked.argmin()]


def test_reports(done):
    home, _ = done
    report = json.loads((home / "runs/own/eval-reranked/report.json").read_text())
    assert report["label"] == "reranked"
    stats = artifacts.load(home / "runs/own/eval-reranked").stats
    assert stats["weight"] in [weight for weight, _ in stats["weights"]]
    assert stats["rerank"]["queries"] == 6
    alone = json.loads((home / "runs/own/eval-reranked/embedder.json").read_text())
    assert (alone["label"], alone["made"]["rerank"]) == ("reranked without reranker", None)
    assert alone["model"] == report["model"]
    reranker = Reranker.load(home / "runs/own/reranker/model", device="cpu")
    fused = Fused.from_json(json.loads((home / "runs/own/eval-reranked/fusion.json").read_text()), reranker)
    assert [kind.queries for kind in fused.gate.kinds] == [6]
    assert stats["passing"] == [kind.instruction for kind in fused.gate.kinds if kind.passes]
    page = (home / "runs/own/report/report.html").read_text()
    assert "Shapes [1]" in page
    assert page.count("data:image/") > 5
    assert "http://" not in page.replace("http://www.w3.org", "")  # it shows without a network


def test_the_second_run_does_nothing(done, capsys):
    home, _ = done
    before = {p: p.stat().st_mtime_ns for p in (home / "runs/own").rglob("*") if p.is_file()}
    assert call("run", "own.py", "--out", "runs/own") == 0
    assert capsys.readouterr().err.count("done before") == len(OUTS)
    assert {p: p.stat().st_mtime_ns for p in (home / "runs/own").rglob("*") if p.is_file()} == before


def test_search_finds_the_indexed_pictures(done, capsys):
    assert call("search", "runs/own/index", "a red square", "--json", "-k", "4") == 0
    hits = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4]
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert all(Path(hit["images"][0]).exists() for hit in hits)
    assert call("search", "runs/own/index", "--image", "pictures/red-bar.png", "--json", "-k", "1") == 0
    (hit,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert hit["images"] == ["pictures/red-bar.png"]
    assert hit["score"] == pytest.approx(1, abs=1e-3)
    assert call("search", "runs/own/index", "as blue", "--image", "pictures/red-bar.png") == 0
    assert "20 items searched" in capsys.readouterr().out


@pytest.mark.usefixtures("done")
def test_search_reranks(capsys):
    asked = ("search", "runs/own/index", "a red square", "-k", "6")
    assert call(*asked, "--json") == 0
    plain = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    again = ("--rerank", "runs/own/reranker", "--weight", "5", "--depth", "4")
    assert call(*asked, *again, "--json") == 0
    hits = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    reranker = Reranker.load("runs/own/reranker/model", device="cpu")
    items = [Item(images=(Path(hit["images"][0]).resolve(),)) for hit in plain[:4]]
    truth = [hit["score"] for hit in plain[:4]] + 5 * reranker.score(Item(text="a red square"), items)
    order = np.argsort(-truth, kind="stable")
    assert [hit["was"] for hit in hits] == [*(order + 1).tolist(), 5, 6]
    assert [hit["score"] for hit in hits[:4]] == pytest.approx(truth[order].tolist(), abs=1e-4)
    assert [hit["cosine"] for hit in hits] == [plain[hit["was"] - 1]["score"] for hit in hits]
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5, 6]
    assert call(*asked, *again, "--pairs", "2") == 0
    out = capsys.readouterr().out
    assert "20 items searched" in out
    assert "The reranker read 2 of 4 candidates in" in out


def test_search_uses_what_was_learned_of_the_reranker(done, capsys, tmp_path):
    home, _ = done
    learned = json.loads((home / "runs/own/eval-reranked/fusion.json").read_text())
    asked = ("search", "runs/own/index", "a red square", "--rerank", "runs/own/reranker", "--fusion")
    for passes, shown in (
        (True, "The reranker read 4 of 4 candidates"),
        (False, "The reranker read nothing: its gate does not"),
    ):
        (kind,) = learned["gate"]["kinds"]
        gain = {"mean": 0.5 if passes else -0.5, "low": 0.1 if passes else -0.9, "high": 0.9}
        kinds = [kind | {"gain": gain, "weight": 0.1, "margin": 9.0}]
        (tmp_path / "fusion.json").write_text(json.dumps(learned | {"gate": {"kinds": kinds}}))
        assert call(*asked, tmp_path) == 0
        assert shown in capsys.readouterr().out
    for wrong, message in (
        ((tmp_path / "fusion.json", "--depth", "3"), "depth and weight of the reranker are in the fusion"),
        ((tmp_path / "nowhere.json",), "nowhere.json is no fusion of a reranker (No such file or directory)"),
        ((home / "pairs.jsonl",), "pairs.jsonl is no fusion of a reranker (not JSON"),
    ):
        assert call(*asked, *wrong) == 1
        assert message in " ".join(capsys.readouterr().err.split())
    assert call("search", "runs/own/index", "a red square", "--rerank", "runs/own/round1") == 1
    assert "is an embedder and gives no score of a pair" in capsys.readouterr().err
    assert call("search", "runs/own/index", "a red square", "--pairs", "2") == 2
    assert "are about a reranker: name one with --rerank" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_workspace_can_be_moved(done, capsys, tmp_path):
    import shutil

    home, _ = done
    shutil.copytree(home / "pictures", tmp_path / "pictures")
    shutil.copytree(home / "runs", tmp_path / "runs")
    assert call("search", tmp_path / "runs/own/index", "a red square", "--json", "-k", "2") == 0
    moved = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(Path(hit["images"][0]).resolve().is_relative_to(tmp_path.resolve()) for hit in moved)
