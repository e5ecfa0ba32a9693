"""An evaluation by several processes, and one that is killed: real processes."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import processes
import pytest

from hardwon.models import Embedder, Reranker


@pytest.fixture(scope="module")
def models(tiny_text, tmp_path_factory):
    reranker = tmp_path_factory.mktemp("reranker") / "model"
    Reranker.start_from(Embedder.load(tiny_text, device="cpu"), layers=1).save(reranker)
    return str(tiny_text), str(reranker)


@pytest.fixture(scope="module")
def two(models, tmp_path_factory):
    """By process: the answers; what is said where one process fails."""
    works = [(processes.evaluating, *models, str(tmp_path_factory.mktemp("stores"))), (processes.failing, 2)]
    works += [(processes.breaking, 2, ill) for ill in (False, True)]
    return processes.together(2, tmp_path_factory.mktemp("two"), *works)


@pytest.fixture(scope="module")
def alone(models, tmp_path_factory):
    return processes.evaluating(*models, str(tmp_path_factory.mktemp("alone")))


@pytest.mark.parametrize("store", ["none", "shared"])
def test_two_processes_answer_as_one_does(two, alone, store):
    """83 queries, which two does not divide: every answer and its place, to the last bit."""
    for found, *_ in two:
        assert found[store]["results"] == alone[store]["results"]
        assert found[store]["processes"] == 2
        assert len(found[store]["results"][0]["hits"]) == 83


def test_a_reranker_shared_out_gives_the_same(two, alone):
    truth = alone["own"]["results"]
    for found, *_ in two:
        for ours, theirs in zip(found["own"]["results"], truth, strict=True):
            assert ours["firsts"] == theirs["firsts"]
            np.testing.assert_allclose(ours["hits"], theirs["hits"])
    assert truth != alone["none"]["results"]


def test_a_budget_of_pairs_is_shared(two, alone):
    """Every process decides alike what to read, so what is read is what one process reads."""
    truth = alone["budget"]
    assert 0 < truth["rerank"]["queries_read"] < truth["rerank"]["queries"] == 86
    for found, *_ in two:
        assert found["budget"]["rerank"] == truth["rerank"]
        for ours, theirs in zip(found["budget"]["results"], truth["results"], strict=True):
            assert ours["firsts"] == theirs["firsts"]
            np.testing.assert_allclose(ours["hits"], theirs["hits"])


def test_each_item_is_encoded_by_one_process(two, alone):
    for store in ("none", "shared", "own"):
        calls = [[key for call in found[store]["calls"] for key in call] for found, *_ in two]
        together = [*calls[0], *calls[1]]
        assert len(together) == len(set(together)) == alone[store]["encoded"] == two[0][0][store]["encoded"]
        assert set(together) == {key for call in alone[store]["calls"] for key in call}
        assert min(map(len, calls)) > 0.3 * len(together)
    for found in (*(found for found, *_ in two), alone):
        assert found["again"] == [0, []]


def test_where_one_process_fails_both_go_on_with_the_next_task(two):
    (_, (other, failed), *_), (_, (own, failed_there), *_) = two
    assert "its vector is not finite" in own
    assert "task broken, query" in own
    assert "encoding failed in another process: its message says why" in other
    assert failed == failed_there  # the first, which writes the report, has the reason of the second
    assert list(failed) == ["broken"]
    assert "its vector is not finite" in failed["broken"]


@pytest.mark.parametrize("work", [2, 3], ids=["others are fine", "others fail"])
def test_where_one_process_breaks_down_none_goes_on(two, work):
    """With what would be skipped, too: the others would wait for it at the next task."""
    assert two[1][work] == "ZeroDivisionError('a bug')"
    assert two[0][work] == "RuntimeError('reranking broke down in another process: its message says why')"


def log(out):
    text = (out / "log").read_text() if (out / "log").exists() else ""
    return [line.split() for line in text.splitlines()]


def start(out, pause):
    out.mkdir(exist_ok=True)
    multiprocessing.set_forkserver_preload(["hardwon.training.run", "sentence_transformers"])  # as `together`
    process = multiprocessing.get_context("forkserver").Process(target=processes.measuring, args=(out, pause))
    process.start()
    return process


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path):
    whole = tmp_path / "whole"
    start(whole, 0.0).join(60)
    truth, batches = json.loads((whole / "report.json").read_text()), log(whole)
    assert len(batches) == 10
    cut = tmp_path / "cut"
    process = start(cut, 0.15)
    until = time.monotonic() + 60
    while len(log(cut)) < 5:
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = log(cut)
    assert not (cut / "report.json").exists()
    start(cut, 0.0).join(60)
    made, after = json.loads((cut / "report.json").read_text()), log(cut)[len(before) :]
    assert made["results"] == truth["results"]
    assert made["revision"] == truth["revision"]
    assert len(after) == made["made"]["items_encoded"] / 10
    assert [*before[:-1], *after] == batches  # the batch under way when it was killed is encoded again, nothing else is
