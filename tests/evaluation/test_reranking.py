import json
from dataclasses import replace

import numpy as np
import pytest

from hardwon.errors import ModelError
from hardwon.evaluation import Benchmark, Report, evaluate, evaluate_reranking
from hardwon.items import Item
from hardwon.metrics import Interval
from hardwon.search import Fused, Gate, Kind


class Judge:
    fingerprint = "judge"

    def __init__(self, good):
        self.good = good

    def score_pairs(self, pairs, *, progress=""):
        right = [query.text.split()[-1] == item.text.split()[-1] for query, item in pairs]
        return np.array([8.0 if r == self.good else -8.0 for r in right], dtype=np.float32)


@pytest.fixture
def benchmark(make_task):
    return Benchmark("b", (make_task("one", 30, 40), make_task("two", 20, 25, prefix="far ", distribution="ood")))


def test_both_reports_from_one_encoding(fake, benchmark):
    encoder = fake()
    found = evaluate_reranking(
        encoder, benchmark, Fused(Judge(True), depth=10, weight=1.0), labels=("small", "both"), progress=False
    )
    asked = [key for call in encoder.calls for key in call]
    assert len(asked) == len(set(asked)) > 0  # nothing twice
    assert found.alone.results == evaluate(fake(), benchmark, progress=False).results
    assert found.reranked.results == evaluate(fake(), benchmark, rerank=Fused(Judge(True), 10, 1.0), progress=False).results
    assert (found.comparison.first, found.comparison.second) == ("both", "small")
    gains = {task.name: task.value.mean for task in found.comparison.tasks}
    for name in ("one", "two"):
        hits = [np.mean(report.result(name).hits) for report in (found.reranked, found.alone)]
        assert gains[name] == pytest.approx(hits[0] - hits[1])
        assert gains[name] > 0.1
    assert found.below == ()


def test_the_report_says_how_the_reranker_was_used(fake, benchmark):
    def fused(weight=0.1, low=0.5, clip=(-9.0, 9.0)):
        return Fused(Judge(True), 5, gate=Gate((Kind("", 5, Interval(1.0, low, 1.0), weight, 0.05, 0.5),)), clip=clip)

    reports = [
        evaluate(fake(), benchmark, rerank=rerank, progress=False)
        for rerank in (fused(), fused(weight=0.4), fused(low=0.6), fused(clip=(-1.0, 9.0)))
    ]
    told = reports[0].made["rerank"]
    assert (told["clip"], told["gate"]["kinds"][0]["weight"]) == ([-9.0, 9.0], 0.1)
    assert told["gate"]["kinds"][0]["gain"]["low"] == 0.5
    assert Report.from_json(json.loads(json.dumps(reports[0].to_json()))) == reports[0]
    assert len({report.fingerprint for report in reports}) == 4
    more = {"pairs": 7, "queries_read": 3}  # as another run within the same milliseconds may read
    assert replace(reports[0], made=reports[0].made | {"rerank": told | more}).fingerprint == reports[0].fingerprint


class Fails(Judge):
    def __init__(self, *words):
        super().__init__(True)
        self.words = words

    def score_pairs(self, pairs, *, progress=""):
        if any(query.text.startswith(self.words) for query, _ in pairs):
            raise ModelError("it fell asleep")
        return super().score_pairs(pairs, progress=progress)


def test_what_is_done_outlives_a_task_that_cannot_be_reranked(fake, benchmark, make_task, tmp_path):
    gone = make_task("gone", 1, 2, corpus=(Item(text="there"), Item(images=(tmp_path / "gone.png",))))
    more = Benchmark("b", (*benchmark.tasks, gone))
    for asked, tasks in ((benchmark, None), (benchmark, ["one", "two"]), (more, None)):
        found = evaluate_reranking(fake(), asked, Fails("far "), tasks=tasks, progress=False, on_error="skip")
        assert [task.name for task in found.comparison.tasks] == ["one"]
        assert [result.name for result in found.alone.results] == ["one", "two"]
        assert "it fell asleep" in found.reranked.failed["two"]
        assert "two" not in found.alone.failed
        assert ("gone.png" in found.reranked.failed.get("gone", "")) is (asked is more)


def test_tasks_that_got_worse_are_named(fake, benchmark, make_task):
    encoder = fake(dim=16)
    for task in benchmark.tasks:
        for query, gold in zip(task.queries, task.gold, strict=True):
            encoder.vectors[query.key] = encoder.random(task.corpus[gold[0]])
    found = evaluate_reranking(encoder, benchmark, Fused(Judge(False), depth=10, weight=1.0), progress=False)
    assert found.below == ("one", "two")


def test_what_is_printed_says_how_much_was_read(fake, benchmark, shown):
    gate = Gate((Kind("", 5, Interval(1.0, 0.5, 1.0), 1.0, margin=0.05, reranked=0.5),))
    found = evaluate_reranking(fake(), benchmark, Fused(Judge(True), depth=10, gate=gate), progress=False)
    told = found.reranked.made["rerank"]
    assert told["queries"] == 50 and 0 < told["queries_read"] < 50 and told["pairs"] == 10 * told["queries_read"]
    for text in (str(found), shown(found)):
        assert f"The reranker read {told['pairs']} pairs" in text
        assert f"it was asked about {told['queries_read']} of 50 queries" in text
        assert "embedder + reranker − embedder on b" in text
    some = evaluate_reranking(fake(), benchmark, Fused(Judge(True), depth=3), tasks=["two"], progress=False)
    assert [task.name for task in some.comparison.tasks] == ["two"]
