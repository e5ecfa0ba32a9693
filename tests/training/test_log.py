import io
import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from hardwon import progress
from hardwon.losses import InfoNCE, Pairwise
from hardwon.models import Reranker
from hardwon.training import LearnedTemperature, Settings, Step, log, train
from hardwon.training.batches import batches
from hardwon.training.log import in_words, memory_mib, step_row
from hardwon.training.loop import schedule

CPU = torch.device("cpu")
SHOW_CURSOR = "\x1b[?25h"  # the last that a terminal gets
QUICK = Settings(batch_size=7, negatives=1, learning_rate=3e-6, warmup=0.4)


def rows_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("torn", ['{"step": 3, "gradient": {"a": 0.5}', "5}", "\x00\x00}", '{"step": 3', "[1]", '"x"'])
def test_a_line_that_was_cut_off_is_none(torn, tmp_path):
    """Wherever that was: the run goes on."""
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{{"step": 2, "loss": 1.0}}\n{torn}')
    with log.metrics_log(tmp_path, 1, "title", ()) as tell:
        tell({"step": 2, "loss": 2.0})
    assert rows_of(tmp_path) == [{"step": 1}, {"step": 2, "loss": 2.0}]


class TestRows:
    def test_learning_rate_and_its_share(self, text_model, texts, tmp_path):
        train(text_model, texts, InfoNCE(0.1), steps=5, settings=QUICK, out=tmp_path)
        rows = rows_of(tmp_path)
        assert [row["rate"] for row in rows] == pytest.approx([schedule(n, 5, 0.4) for n in range(5)], abs=1e-6)
        # Rates as low as this one would round to nothing.
        assert [row["learning_rate"] for row in rows] == pytest.approx([3e-6 * schedule(n, 5, 0.4) for n in range(5)], rel=1e-5)

    def test_items_are_those_that_are_encoded(self, text_model, texts, tmp_path):
        encoded, forward = [], text_model.forward
        text_model.forward = lambda items: encoded.append(len(items)) or forward(items)
        twice = [
            *texts,
            *(replace(e, query=e.gold[0], candidates=e.candidates) for e in texts[:5]),
        ]  # queries that are candidates
        train(text_model, twice, InfoNCE(0.1), steps=4, settings=QUICK, out=tmp_path)
        stream = batches(twice, size=7, steps=4, negatives=1)
        truth = [len({item.key for item in (*batch.queries, *batch.candidates)}) for batch in stream]
        assert [row["items"] for row in rows_of(tmp_path)] == truth
        assert sum(truth) == sum(encoded[1:])  # the first is a trial of the model

    def test_items_of_a_reranker_are_pairs(self, text_model, texts, tmp_path):
        model = Reranker.start_from(text_model)
        train(model, texts, Pairwise(), steps=2, settings=replace(QUICK, random_negatives=1), out=tmp_path)
        assert [row["items"] for row in rows_of(tmp_path)] == [7 * 3, 7 * 3]

    def test_speed_and_memory(self):
        step = Step(number=4, loss=0.1234567, norm=2.0, rate=0.5, items=90, seconds=0.4)
        row = step_row(step, Settings(learning_rate=2e-4), CPU)
        assert row.pop("memory_mib") > 50
        assert row == {
            "step": 5,
            "loss": 0.123457,
            "gradient_norm": 2.0,
            "rate": 0.5,
            "learning_rate": 1e-4,
            "items": 90,
            "masked": 0,
            "items_per_second": 225.0,
            "seconds": 0.4,
        }
        assert step_row(step, Settings(), CPU, 0.05)["temperature"] == 0.05

    def test_a_learned_temperature_has_its_place(self, text_model, texts, tmp_path):
        settings = replace(QUICK, temperature=LearnedTemperature(0.01, 0.5))
        train(text_model, texts, InfoNCE(0.1), steps=1, settings=settings, out=tmp_path)
        assert rows_of(tmp_path)[0]["temperature"] == pytest.approx(0.1, abs=1e-3)


class TestMemory:
    def test_is_what_is_resident(self):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        assert memory_mib(CPU) == pytest.approx(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, rel=0.02)

    def test_grows_and_shrinks_with_what_is_held(self):
        before = memory_mib(CPU)
        held = torch.ones(2**25)
        assert memory_mib(CPU) - before == pytest.approx(128, abs=8)
        del held
        assert memory_mib(CPU) - before == pytest.approx(0, abs=8)

    @pytest.mark.parametrize(("platform", "unit"), [("darwin", 2**20), ("freebsd14", 1024)])
    def test_elsewhere_it_is_the_most_that_was_ever_resident(self, monkeypatch, tmp_path, platform, unit):
        monkeypatch.setattr(log, "STATUS", tmp_path / "none")
        monkeypatch.setattr("sys.platform", platform)
        assert memory_mib(CPU) == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, rel=0.01)

    def test_on_cuda_it_is_the_most_that_was_allocated(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", {torch.device("cuda", 1): 3 * 2**30}.get)
        assert memory_mib(torch.device("cuda", 1)) == 3072.0


class TestWords:
    ROW = {"loss": 0.6931, "items_per_second": 1234.56, "learning_rate": 3e-5, "memory_mib": 1536.0}  # noqa: RUF012

    def test_are_few(self):
        assert in_words(self.ROW) == "loss 0.693  1,234.6 items/s  lr 3e-05  1.50 GiB"

    def test_stand_in_a_log_now_and_then(self, text_model, texts, monkeypatch, capsys):
        monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
        train(text_model, texts, InfoNCE(0.1), steps=3, settings=QUICK)
        *lines, last = capsys.readouterr().err.splitlines()[-4:]
        for n, line in enumerate(lines, 1):
            assert line.startswith(f"training: {n}/3 steps, ")
            for part in ("s left", "loss ", " items/s", "lr ", " GiB"):
                assert part in line
        assert last.startswith("training: 3/3 steps in ")

    def test_stand_under_the_bar_of_a_terminal(self, text_model, texts, monkeypatch):
        out = io.StringIO()
        monkeypatch.setattr(progress, "console", lambda: Console(file=out, force_terminal=True, width=80, color_system=None))
        train(text_model, texts, InfoNCE(0.1), steps=3, settings=QUICK)
        bar, words = out.getvalue().replace(SHOW_CURSOR, "").splitlines()[-2:]
        for part in ("3/3", "steps/s", "ETA"):
            assert part in bar
        for part in ("loss ", " items/s", "lr ", " GiB"):
            assert part in words


def test_what_the_caller_does_between_updates_is_not_counted(text_model, texts, monkeypatch, tmp_path):
    """A validation is no part of the next step, or its speed would say nothing."""

    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock, forward = Clock(), text_model.forward
    monkeypatch.setattr("hardwon.training.loop.time.perf_counter", clock)

    def slow(items):
        clock.now += 2.0
        return forward(items)

    def check():
        clock.now += 500.0
        return 0.0

    text_model.forward = slow
    train(text_model, texts, InfoNCE(0.1), steps=3, settings=QUICK, out=tmp_path, validate=(1, check))
    rows = [row for row in rows_of(tmp_path) if "loss" in row]
    assert [row["seconds"] for row in rows] == [2.0, 2.0, 2.0]
    assert [row["items_per_second"] for row in rows] == [round(row["items"] / 2, 1) for row in rows]
