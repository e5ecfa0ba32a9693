"""A run that is interrupted and goes on ends with the weights and losses of an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from hardwon.losses import FalseNegatives, InfoNCE, JudgeAlignment, Pairwise
from hardwon.models import Embedder, Reranker
from hardwon.training import LearnedTemperature, Settings, train

STEPS = 8
SETTINGS = Settings(batch_size=8, negatives=1, dropout=True, learning_rate=1e-3)


def rows_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def steps_of(out):
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in rows_of(out) if "loss" in row]


def run(model, out, validate=None, examples=None, loss=None, settings=SETTINGS):
    return train(
        model, examples or tiny.texts(), loss or InfoNCE(0.1), steps=STEPS, settings=settings, out=out, validate=validate
    )


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Stop(Exception):
    pass


def stop_at(step, error=None):
    """Validation after every step that stops the run in the middle of the given one's."""
    calls = []

    def check():
        calls.append(1)
        if len(calls) == step:
            if error is not None:
                raise error
            os.kill(os.getpid(), signal.SIGINT)
        return 0.0

    return 1, check


@pytest.fixture(scope="module")
def undisturbed(tiny_text, tmp_path_factory):
    """Weights and steps of a run that nobody interrupts."""
    out = tmp_path_factory.mktemp("undisturbed")
    model = run(Embedder.load(tiny_text, device="cpu"), out)
    assert not (out / "checkpoint").exists()  # it was quicker than SAVE_EVERY_S
    return model.module.state_dict(), steps_of(out)


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after every step."""
    monkeypatch.setattr("hardwon.training.run.SAVE_EVERY_S", 0.0)


@pytest.fixture
def interrupted(fresh_text, tmp_path, often):
    """A run stopped while validating step 5: checkpoints after steps 3 and 4."""
    with pytest.raises(Stop):
        run(fresh_text(), tmp_path, stop_at(5, Stop()))
    assert sorted(p.name for p in (tmp_path / "checkpoint").iterdir()) == ["step-0000003", "step-0000004"]
    assert [step for step, *_ in steps_of(tmp_path)] == [1, 2, 3, 4, 5]
    return tmp_path


def test_after_an_error(interrupted, undisturbed, fresh_text):
    model = run(fresh_text(), interrupted)
    assert equal(model.module.state_dict(), undisturbed[0])
    assert steps_of(interrupted) == undisturbed[1]
    assert len(list((interrupted / "checkpoint").iterdir())) == 2


def test_after_control_c(undisturbed, fresh_text, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(fresh_text(), tmp_path, stop_at(4))
    assert signal.getsignal(signal.SIGINT) is before
    assert [p.name for p in (tmp_path / "checkpoint").iterdir()] == ["step-0000004"]
    assert len(steps_of(tmp_path)) == 4
    model = run(fresh_text(), tmp_path, stop_at(99))
    assert equal(model.module.state_dict(), undisturbed[0])
    assert steps_of(tmp_path) == undisturbed[1]
    # Not even a validation is missing.
    assert [row["step"] for row in rows_of(tmp_path) if "validation" in row] == list(range(1, STEPS + 1))


def test_control_c_in_the_last_step_changes_nothing(undisturbed, fresh_text, tmp_path):
    model = run(fresh_text(), tmp_path, stop_at(STEPS))
    assert equal(model.module.state_dict(), undisturbed[0])


def test_a_second_control_c_stops_at_once(undisturbed, fresh_text, tmp_path):
    def check():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on")

    with pytest.raises(KeyboardInterrupt):
        run(fresh_text(), tmp_path, (2, check))
    assert not (tmp_path / "checkpoint").exists()
    assert steps_of(tmp_path) == undisturbed[1][:2]
    assert equal(run(fresh_text(), tmp_path).module.state_dict(), undisturbed[0])
    assert steps_of(tmp_path) == undisturbed[1]


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.append(sys.argv[3])
import tiny, torch
torch.set_num_threads(1)
from hardwon.losses import InfoNCE
from hardwon.models import Embedder
from hardwon.training import Settings, run, train
run.SAVE_EVERY_S = 0.0
settings = Settings(batch_size=8, negatives=1, dropout=True, learning_rate=1e-3)
check = lambda: time.sleep(0.5) or 0.0
train(Embedder.load(sys.argv[1], device="cpu"), tiny.texts(), InfoNCE(0.1), steps=8, settings=settings, out=Path(sys.argv[2]),
      validate=(1, check))
"""


def test_after_kill(undisturbed, tiny_text, fresh_text, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tiny_text), str(tmp_path), str(Path(tiny.__file__).parent)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "checkpoint").glob("step-0000003/manifest.json")):
            assert process.poll() is None, "the run ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert 3 <= len(steps_of(tmp_path)) < STEPS
    model = run(fresh_text(), tmp_path)
    assert equal(model.module.state_dict(), undisturbed[0])
    assert steps_of(tmp_path) == undisturbed[1]


def flip_a_byte(folder):
    path = folder / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(folder):
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lose_the_state(folder):
    (folder / "state.safetensors").unlink()


def spoil_the_manifest(folder):
    (folder / "manifest.json").write_text("{half of")


def leave_unfinished(folder):
    (folder / "manifest.json").rename(folder / "started.json")


DAMAGES = [flip_a_byte, cut_short, lose_the_state, spoil_the_manifest, leave_unfinished]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(damage, interrupted, undisturbed, fresh_text):
    damage(interrupted / "checkpoint" / "step-0000004")
    model = run(fresh_text(), interrupted)
    assert equal(model.module.state_dict(), undisturbed[0])
    assert steps_of(interrupted) == undisturbed[1]
    (event,) = [row for row in rows_of(interrupted) if "event" in row]
    assert event["event"] == "damaged checkpoint passed over"
    assert "step-0000004" in event["problem"]


def test_without_any_whole_checkpoint_it_starts_over(interrupted, undisturbed, fresh_text):
    flip_a_byte(interrupted / "checkpoint" / "step-0000004")
    cut_short(interrupted / "checkpoint" / "step-0000003")
    model = run(fresh_text(), interrupted)
    assert equal(model.module.state_dict(), undisturbed[0])
    assert steps_of(interrupted) == undisturbed[1]
    assert sum("event" in row for row in rows_of(interrupted)) == 2


def test_a_line_of_the_log_that_was_cut_off_is_dropped(interrupted, undisturbed, fresh_text):
    with open(interrupted / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    run(fresh_text(), interrupted)
    assert steps_of(interrupted) == undisturbed[1]


def test_a_reranker_of_pictures(fresh_vlm, shapes, tmp_path, often):
    def model():
        made = Reranker.start_from(fresh_vlm(), layers=1, seed=3)
        return made.freeze(["vision"])

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    truth = run(model(), whole, examples=shapes, loss=Pairwise())
    with pytest.raises(Stop):
        run(model(), parts, stop_at(4, Stop()), examples=shapes, loss=Pairwise())
    made = run(model(), parts, examples=shapes, loss=Pairwise())
    assert equal(made.module.state_dict(), truth.module.state_dict())
    assert steps_of(parts) == steps_of(whole)


def test_a_tower_that_is_trained(fresh_vlm, shapes, tmp_path, often):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    truth = run(fresh_vlm(), whole, examples=shapes)
    with pytest.raises(Stop):
        run(fresh_vlm(), parts, stop_at(3, Stop()), examples=shapes)
    assert equal(run(fresh_vlm(), parts, examples=shapes).module.state_dict(), truth.module.state_dict())


def test_a_temperature_that_is_learned(fresh_text, tmp_path, often):
    settings = replace(
        SETTINGS,
        temperature=LearnedTemperature(0.05, 0.2, learning_rate=0.02),
        widths=(8,),
        false_negatives=FalseNegatives(student=0.1),
        report_every=3,
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    how = {"loss": InfoNCE(0.1) + JudgeAlignment(0.1), "settings": settings}
    truth = run(fresh_text(), whole, **how)
    with pytest.raises(Stop):
        run(fresh_text(), parts, stop_at(5, Stop()), **how)
    made = run(fresh_text(), parts, **how)
    assert equal(made.module.state_dict(), truth.module.state_dict())
    rows = [[row for row in rows_of(out) if "validation" not in row] for out in (parts, whole)]
    for row in (*rows[0], *rows[1]):
        for timing in ("seconds", "items_per_second", "memory_mib"):
            row.pop(timing, None)
    assert rows[0] == rows[1]
    temperatures = [row["temperature"] for row in rows_of(whole) if "loss" in row]
    assert len(set(temperatures)) == STEPS
    assert [row["step"] for row in rows_of(whole) if "gradient" in row] == [1, 4, 7]
