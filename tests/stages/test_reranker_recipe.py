"""recipes/reranker.py, run as a user does, on a small workspace of the demo's form."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from hardwon import artifacts, cli
from hardwon.evaluation import Benchmark, Task, write_benchmark
from hardwon.items import Candidate, Example, Item, read_examples, write_examples
from hardwon.models import Embedder, Reranker
from hardwon.search import Blend

# The candidate that tells a judge what to answer is longer than the 64 tokens of the tiny model leave room for.
pytestmark = pytest.mark.filterwarnings("ignore:query and candidate come to more than the 64 tokens")

RECIPE = Path(__file__).parents[2] / "recipes" / "reranker.py"
TONE, CHANGE, FIND = "Which colour?", "Find the picture after this change.", "Find a picture of this."
OUTS = ("near-misses", "reranker-kinds", "eval-gated", "judged", "round3", "eval-round3")
# Only what makes the recipe large.
SMALL = (
    "near-misses.settings.depth=6", "near-misses.settings.keep=3", "reranker-kinds.layers=1", "reranker-kinds.steps=3",
    "reranker-kinds.settings.batch_size=4", "eval-gated.depth=3", "judged.settings.min_auc=0.0", "judged.settings.depth=4",
    "judged.settings.queries=30", "round3.steps=2", "round3.settings.batch_size=8",
)  # fmt: skip


def pairs(pictures):
    """The demo's kinds on coloured shapes: a property asked for, a picture after a change, and another one."""
    made = []
    for caption, path in pictures.items():
        colour, shape = caption.split()
        other = next(c for c in pictures if c.endswith(shape) and c != caption)
        for query, gold, source in (
            (Item(images=(path,), instruction=TONE), Item(text=f"{colour} thing"), "skin_tone"),
            (Item(f"in {other.split()[0]}", (path,), CHANGE), Item(images=(pictures[other],)), "composed"),
            (Item(text=caption, instruction=FIND), Item(images=(path,)), "text_to_image"),
        ):
            made.append(Example(query, (Candidate(gold, 1.0, "gold"),), source))
    return made


@pytest.fixture(scope="module")
def done(tiny_vlm, tmp_path_factory):
    """A workspace as the demo leaves it, in which `distil` was run (it begins with `recipe`), and the exit code."""
    home = tmp_path_factory.mktemp("reranker") / "run"
    shutil.copytree(tiny_vlm, home / "round2" / "model")
    pictures = tiny.draw_all(home / "data" / "pictures")
    rows = pairs(pictures)
    write_examples(home / "data" / "train.jsonl", rows)
    write_examples(home / "data" / "val.jsonl", rows[1::2])
    corpus = tuple(Item(images=(path,)) for path in pictures.values())
    queries = tuple(Item(text=f"a {caption}", instruction=FIND) for caption in pictures)
    task = Task("text_to_image", "retrieval", "ind", queries, corpus, tuple((n,) for n in range(len(corpus))))
    write_benchmark(Benchmark("small", (task,)), home / "data" / "mmeb-small")
    before = sys.argv
    sys.argv = ["hardwon", "run", f"{RECIPE}:distil", "--out", str(home)]
    for setting in SMALL:
        sys.argv += ["--set", setting]
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    return home, code


def test_it_runs_as_one_command(done):
    home, code = done
    assert code == 0
    made = {out: artifacts.load(home / out) for out in OUTS}
    assert made["reranker-kinds"].stats["examples"] == 40  # of its two kinds
    told = json.loads((home / "eval-gated" / "fusion.json").read_text())
    assert {kind["instruction"] for kind in told["gate"]["kinds"]} == {TONE, CHANGE}
    # Nothing held out was of the benchmark's kind: it is left as it is, and nothing is read.
    assert made["eval-gated"].stats["rerank"]["pairs"] == 0
    assert made["eval-gated"].stats["below"] == []


def test_the_next_round_learns_from_what_the_reranker_says(done):
    """A soft label is the grade of the blend of reranker and cosine."""
    home, _ = done
    embedder = Embedder.load(home / "round2/model", device="cpu")
    stats = artifacts.load(home / "judged").stats
    reranker = Reranker.load(home / "reranker-kinds/model", device="cpu")
    judge = Blend(embedder, reranker, *(stats["blend"][name] for name in ("bias", "cosine", "odds")))
    examples = list(read_examples(home / "judged/examples.jsonl", home / "data"))
    pairs = [(e.query, c) for e in examples for c in e.candidates if c.relevance is not None and c.origin == "mined"]
    assert len(pairs) > 15
    odds = judge.score_pairs([(query, c.item) for query, c in pairs]).astype(float)
    assert [c.relevance for _, c in pairs] == pytest.approx((1 / (1 + np.exp(-odds))).tolist(), abs=1e-4)
    assert json.loads((home / "eval-round3/report.json").read_text())["label"] == "round 3"
    assert Embedder.load(home / "round3/model", device="cpu").fingerprint != embedder.fingerprint
