"""G15: no command on local data asks anybody outside of this machine for anything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import offline
import tiny

from hardwon.evaluation import Benchmark, Task, write_benchmark
from hardwon.items import Item

TESTS = Path(__file__).parents[1]
RECIPE = """
from hardwon.losses import InfoNCE, JudgeAlignment, Listwise, Pairwise
from hardwon.mining import Mining
from hardwon.stages import BuildIndex, Evaluate, Mine, Train
from hardwon.training import Settings

MODEL, DATA = {model!r}, "pairs.jsonl"


def recipe():
    few = Settings(batch_size=6, negatives=2, random_negatives=1)
    return (
        Train("round1", model=MODEL, data=DATA, loss=InfoNCE(temperature=0.1), steps=2, settings=few),
        Mine("confusions", model="round1/model", data=DATA, settings=Mining(depth=5, keep=3)),
        Train("reranker", task="reranker", model="round1/model", data="confusions/examples.jsonl", root={home!r},
              loss=Pairwise() + Listwise(), steps=2, settings=few),
        Mine("negatives", model="round1/model", data=DATA, judge="reranker/model",
             settings=Mining(depth=5, keep=3, min_auc=0.0)),
        Train("round2", model="round1/model", data="negatives/examples.jsonl", root={home!r},
              loss=JudgeAlignment(temperature=0.1) + InfoNCE(temperature=0.1), steps=2, settings=few),
        Evaluate("eval", model="round2/model", benchmark="test", label="one"),
        BuildIndex("index", model="round2/model", items="pictures"),
    )
"""
RUN = "runs/own"
COMMANDS = (
    ("run", "own.py", "--out", RUN),
    ("run", "own.py", "--out", RUN),  # again, with everything there
    ("train", "own.py", "--out", RUN, "--stage", "round1"),
    ("mine", "own.py", "--out", RUN),
    ("evaluate", f"{RUN}/round1", "test", "--out", "other.json"),
    ("compare", f"{RUN}/eval", "other.json"),
    ("inspect", f"{RUN}/round1"),
    ("inspect", f"{RUN}/negatives"),
    ("export", f"{RUN}/confusions", "--to", "tuples", "--out", "tuples.jsonl"),
    ("index", f"{RUN}/round2/model", "pictures", "--out", "idx"),
    ("index", f"{RUN}/round2/model", "pictures", "--out", "idx"),
    ("search", "idx", "a red square", "--rerank", f"{RUN}/reranker", "--json"),
    ("doctor", f"{RUN}/round2/model"),
)


def told(commands, home):
    """What the commands say on standard error, in one process that is watched; hubs are not told to be offline."""
    (home / "commands.json").write_text(json.dumps(commands))
    free = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    environment = free | {"PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run(
        [sys.executable, str(TESTS / "offline.py"), "commands.json"],
        cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_nobody_is_asked_for_anything(tiny_vlm, tmp_path):
    pictures = tiny.draw_all(tmp_path / "pictures")
    captions = list(pictures)
    rows = [
        {"query": f"a {name}", "positive_image": f"pictures/{pictures[name].name}", "source": "shapes"} for name in captions
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:14]))
    corpus = tuple(Item(images=(path,)) for path in pictures.values())
    queries, answers = tuple(Item(text=f"a {name}") for name in captions[14:]), tuple((n,) for n in range(14, len(captions)))
    write_benchmark(Benchmark("shapes", (Task("find", "retrieval", "ind", queries, corpus, answers),)), tmp_path / "test")
    (tmp_path / "own.py").write_text(RECIPE.format(model=str(tiny_vlm), home=str(tmp_path)))
    said = told(COMMANDS, tmp_path)
    assert said.count("\n== ") + said.startswith("== ") == len(COMMANDS)
    assert [line for line in said.splitlines() if line.startswith(offline.OUTBOUND)] == []


def test_the_watch_sees_what_leads_out():
    leave = "import socket, sys; sys.path.append(sys.argv[1]); import offline; sys.addaudithook(offline.watch)\n"
    leave += (
        "socket.getaddrinfo('127.0.0.1', 9); socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 9))"  # sends nothing
    )
    done = subprocess.run([sys.executable, "-c", leave, str(TESTS)], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.splitlines() == [f"{offline.OUTBOUND} socket.connect 192.0.2.1"]
