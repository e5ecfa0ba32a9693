"""One cell of each family, a run that is killed and goes on, and what becomes of the results."""

import inspect
import json
import multiprocessing
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import studying

ONE_OF_EACH = (
    *("llave", "topk", "averaged", "aligned", "aligned-alone", "groups", "rerank-joint"),
    *("copies-0.5-judged", "wrong-0.1-llave"),
)


@pytest.fixture(scope="module")
def run(studied, monkeypatch_module):
    """The results of one row of each family and of what they need, by name."""
    from studies import oracle
    from studies.run import study
    from studies.suites import tiny

    # There are no annotations of shapes: the oracle knows the training pairs alone.
    nothing = oracle.Truth({}, {}, {})
    monkeypatch_module.setattr(oracle.Truth, "load", classmethod(lambda cls, folder: nothing))
    rows = study(tiny().only(ONE_OF_EACH), studied, [0], workers=0, say=studying.quiet)
    return {row["name"]: row for row in rows}


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as made:
        yield made


def test_every_family_runs(run):
    assert set(ONE_OF_EACH) | {"infonce", "judge", "mine-judged", "colder"} <= set(run)
    for name in ONE_OF_EACH:
        row = run[name]
        assert 0 <= row["validation"] <= 1 and set(row["gap"]) == set(row["hits"]) and row["cpu"]["train"] > 0
        assert all(len(hits) == 6 for hits in row["hits"].values())


def test_a_reranker_is_measured_with_and_without_its_gate(run):
    row = run["rerank-joint"]
    for name in ("everywhere", "alone"):
        assert {task: len(hits) for task, hits in row[name].items()} == {task: len(hits) for task, hits in row["hits"].items()}


def test_gates_are_learned_again_from_what_was_trained(run, studied, tmp_path, capsys, monkeypatch):
    from hardwon.evaluation import learn_fusion
    from studies import gates
    from studies.__main__ import main
    from studies.cells import UNGATED
    from studies.measure import unpacked
    from studies.suites import tiny

    def mean(hits):
        return 100 * np.mean([values.mean() for values in unpacked(hits).values()])

    row, before = run["rerank-joint"], mean(run["infonce"]["hits"])
    (gains,) = gates.gates(tiny(), studied, [0, 1]).gains.values()  # seed 1 was not trained
    assert gains.shape == (1, len(gates.LEVELS))
    assert inspect.signature(learn_fusion).parameters["level"].default == gates.LEVELS[0]  # as the row was made
    assert gains[0, 0] == pytest.approx(mean(row["hits"]) - before)
    assert main(["gates", "--suite", "tiny", "--out", str(studied), "--seeds", "1"]) == 0
    assert f"{gains[0, 0]:+.2f} ({gains[0, 0]:+.2f})" in capsys.readouterr().err
    assert main(["gates", "--out", str(tmp_path)]) == 1
    assert "no reranker of these seeds" in " ".join(capsys.readouterr().err.split())
    assert not any(tmp_path.iterdir())

    alone = lambda encoder, reader, benchmark, depth, level: SimpleNamespace(fused=UNGATED["alone"](reader))  # noqa: E731
    monkeypatch.setattr(gates, "learn_fusion", alone)
    (gains,) = gates.gates(tiny(), studied, [0]).gains.values()
    assert gains[0] == pytest.approx(mean(row["alone"]) - before)
    assert gains[0, 0] != 0  # so it is this reranker that was loaded, and this embedder


def test_no_pair_is_read_twice(material):
    from studies.cells import start
    from studies.suites import TINY
    from studies.trunk import Once, Scoring, SmallReranker

    inner = Scoring(SmallReranker.start_from(start(material, TINY, 3), 3))
    once, pairs = Once(inner), [(e.query, e.gold[0]) for e in material.train[:4]]
    first = once.score_pairs([*pairs, pairs[1]])
    assert inner.scored == 4 and first[4] == first[1]
    assert np.array_equal(once.score_pairs(pairs[::-1]), first[:4][::-1]) and inner.scored == 4


def test_cost_counts_what_comes_before(run, studied):
    from studies.plan import TEACHER
    from studies.suites import tiny
    from studies.table import Results, before

    results = Results(tiny(), {(name, 0): row for name, row in run.items()})
    suite, first = results.suite, sum(run[TEACHER]["encodings"].values())
    assert before(results, suite.entry("llave"), [0]) == 0
    mining = sum(sum(run[name]["encodings"].values()) for name in ("judge", "mine-judged"))
    assert run["mine-judged"]["encodings"]["judging"] > 0
    assert before(results, suite.entry("aligned"), [0]) == first + mining
    assert before(results, suite.entry("groups"), [0]) == first + run["groups"]["encodings"]["grouping"]


def test_rows_of_a_seed_begin_alike_and_see_the_same_batches(material):
    import torch

    from hardwon.losses import InfoNCE
    from studies.cells import start, train
    from studies.plan import Training
    from studies.suites import TINY

    one, other = (start(material, TINY, 3).module.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["projector.0.weight"], start(material, TINY, 4).module.state_dict()["projector.0.weight"])
    row = Training("a", "a", "a", InfoNCE(0.03))
    losses = [train(start(material, TINY, 3), material.train, row, TINY, 3, 3)["loss"] for _ in range(2)]
    assert losses[0] == losses[1]


def test_a_killed_run_goes_on(studied, tmp_path):
    """SIGKILL after the first cell: that one is not done again, and all results are those of an undisturbed run."""
    calm, out = tmp_path / "calm", tmp_path / "killed"
    for folder in (calm, out):
        folder.mkdir()
        (folder / next(studied.glob("material-*")).name).symlink_to(next(studied.glob("material-*")))
    calmly = studying.trained(calm)
    multiprocessing.set_forkserver_preload(["hardwon.training.run", "studies.run"])
    process = multiprocessing.get_context("forkserver").Process(target=studying.endlessly, args=(out,))
    process.start()
    first = out / "tiny" / "cells" / "infonce-0.json"
    deadline = time.monotonic() + 250
    while not first.is_file() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and [f.name for f in first.parent.glob("*.json")] == [first.name]
    written = first.stat().st_mtime_ns
    assert studying.trained(out) == calmly
    assert first.stat().st_mtime_ns == written


def test_a_cell_of_another_plan_is_done_again(run, studied):
    from studies.cells import Cell
    from studies.run import finished
    from studies.suites import tiny

    known = json.loads((next(studied.glob("material-*")) / "made.json").read_text())["fingerprint"]
    cell = Cell(tiny(), "infonce", 0, studied / "tiny", known)
    row = json.loads(cell.file.read_text())
    assert finished(cell) == row
    shown_otherwise = replace(
        cell.suite, entries=tuple(replace(e, title="x") if hasattr(e, "title") else e for e in tiny().entries)
    )
    other = cell.file.with_name("infonce-1.json")
    other.write_text(json.dumps(row))
    cell.weights.with_name("infonce-1").write_bytes(cell.weights.read_bytes())
    assert finished(replace(cell, seed=1)) is None
    assert finished(replace(cell, material="other pictures")) is None
    assert finished(replace(cell, suite=shown_otherwise)) == row


def test_a_cell_that_fails_stops_nobody_else(studied, tmp_path, monkeypatch):
    """What needs it is left out as well; a later run tries again."""
    from hardwon.errors import Diverged
    from studies import run as runs
    from studies.suites import tiny

    (tmp_path / next(studied.glob("material-*")).name).symlink_to(next(studied.glob("material-*")))
    do, said, plan = runs.run_cell, [], tiny().only(["llave", "mined"])

    def stumbling(cell, material):
        if cell.entry == "mine-nearest":
            raise Diverged("the loss is nan", 3, ["abc"])
        return do(cell, material)

    monkeypatch.setattr(runs, "run_cell", stumbling)
    rows = runs.study(plan, tmp_path, [0], workers=0, say=said.append)
    assert [row["name"] for row in rows] == ["infonce", "colder", "llave"]
    assert any("mine-nearest" in line and "the loss is nan" in line for line in said)
    assert any("mined" in line and "mine-nearest" in line for line in said)
    monkeypatch.setattr(runs, "run_cell", do)
    rows = runs.study(plan, tmp_path, [0], workers=0, say=said.append)
    assert [row["name"] for row in rows] == ["infonce", "colder", "llave", "mine-nearest", "mined"]


def test_packed_hits_come_back():
    from studies.measure import packed, unpacked

    hits = {"a": (1.0, 0.0, 1.0), "b": (0.5, 1.0)}
    assert packed(hits) == {"a": "101", "b": [0.5, 1.0]}
    for name, values in unpacked(packed(hits)).items():
        assert values.tolist() == list(hits[name])


def test_gap_by_hand():
    from hardwon.evaluation import Task
    from hardwon.evaluation.ranking import Ready
    from hardwon.items import Item
    from studies.measure import gap

    corpus = np.array([[1.0, 0], [0.8, 0.6], [0, 1.0], [-1.0, 0]])
    task = Task("a", "retrieval", "ind", (Item("q"),), tuple(Item(f"c{n}") for n in range(4)), ((0,),))
    ready = Ready(task, np.array([[1.0, 0]]), corpus, np.arange(4), np.arange(4))
    assert gap(ready, near=2) == pytest.approx(1 - (0.8 + 0) / 2)


def test_planted_copies_look_the_same_and_have_another_hash(material):
    import torch

    from studies.plan import Plant
    from studies.plant import original, planted

    made = planted(material.train, material.features, Plant(copies=0.5), 0)
    copies = made[len(material.train) :]
    assert len(copies) == round(0.5 * len(material.train)) and made[: len(material.train)] == material.train
    known = {(e.query, original(e.gold[0])): e.gold[0] for e in material.train}
    features = material.features
    for copy in copies:
        item, twin = copy.gold[0], known[copy.query, original(copy.gold[0])]
        assert item.content != twin.content
        one, other = features.seen(item), features.seen(twin)
        assert (one.picture, one.text) == (other.picture, other.text)
    wrong = planted(material.train, material.features, Plant(wrong=0.25), 0)
    moved = sum(a.gold != b.gold for a, b in zip(wrong, material.train, strict=True))
    assert 0 < moved <= 0.3 * len(material.train)
    assert all(isinstance(x, torch.Tensor) for x in (features.pictures, features.texts))


def test_quarters_of_a_picture():
    import torch

    from studies.features import quarters

    square = torch.arange(16.0).reshape(1, 16, 1)
    assert quarters(square)[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
