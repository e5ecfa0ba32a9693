"""Numbers that are not finite: found in the step in which they appear, before any weight or checkpoint is changed."""

import json

import faulting
import pytest
import tiny
import torch

from hardwon.errors import Diverged
from hardwon.losses import InfoNCE
from hardwon.models import Embedder
from hardwon.training import checkpoint, run, train
from hardwon.training.log import Spikes

INJECTIONS = faulting.injections()
AT = 3  # steps before


def trained(model, out, inject, monkeypatch, times=1, **changed):
    """A training in which something breaks after `AT` steps; what was there before each broken step."""
    step, before = run.embedder_step, []

    def broken(given, loss, batch, *more):
        if AT <= batch.number < AT + times:
            inject(given)
            before.append({name: value.clone() for name, value in given.module.state_dict().items()})
        return step(given, loss, batch, *more)

    monkeypatch.setattr(run, "embedder_step", broken)
    settings = faulting.replace(faulting.SETTINGS, dropout=False, **changed)
    try:
        train(model, tiny.texts(), InfoNCE(0.1), steps=faulting.STEPS, settings=settings, out=out)
    finally:
        monkeypatch.undo()
    return before


@pytest.mark.parametrize("name", INJECTIONS)
def test_found_at_once(name, tiny_text, tmp_path, monkeypatch):
    model, seen = Embedder.load(tiny_text, device="cpu"), []
    inject = INJECTIONS[name]

    def noting(given):
        inject(given)
        seen.append({key: value.clone() for key, value in given.module.state_dict().items()})

    with pytest.raises(Diverged) as told:
        trained(model, tmp_path, noting, monkeypatch)
    assert told.value.step == AT
    assert len(told.value.keys) > 0
    assert all(torch.equal(value, seen[0][key]) or value.isnan().any() for key, value in model.module.state_dict().items())
    assert checkpoint.newest(tmp_path / "checkpoint").name == f"step-{AT:07d}"
    assert [step for step, *_ in faulting.losses(tmp_path)] == list(range(1, AT + 1))
    said = str(told.value)
    assert "The last good checkpoint:" in said
    part = name.split()[0] if "weight" in name or "bias" in name else name.split()[2].rstrip(",") if "output" in name else ""
    if name.startswith("output of the"):
        part = "layer.1.output.LayerNorm" if "last" in name else "layer.0.output.dense"
    assert part in said
    assert ("All modules give finite numbers" in said) == name.split()[-1].startswith(("nan", "inf", "overflows")) & (
        "gradient" in name
    )


def test_a_rate_that_is_far_too_high(tiny_text, tmp_path):
    settings = faulting.replace(faulting.SETTINGS, learning_rate=1e30)
    with pytest.raises(Diverged, match=r"not finite at step 1.*first module whose output is not finite.*step-0000001"):
        train(Embedder.load(tiny_text, device="cpu"), tiny.texts(), InfoNCE(0.1), steps=9, settings=settings, out=tmp_path)


def test_a_loss_that_overflows(tiny_text, tmp_path):
    with pytest.raises(Diverged, match=r"at step 0.*All modules give finite numbers.*There is no checkpoint yet"):
        loss = 2e38 * InfoNCE(0.1) + 2e38 * InfoNCE(0.1)
        train(Embedder.load(tiny_text, device="cpu"), tiny.texts(), loss, steps=2, settings=faulting.SETTINGS, out=tmp_path)


def test_so_many_steps_may_be_left_out(tiny_text, tmp_path, monkeypatch):
    def once(model):
        def spoil(gradient):
            handle.remove()
            return gradient * float("nan")

        handle = next(p for name, p in model.module.named_parameters() if "dense.weight" in name).register_hook(spoil)

    before = trained(Embedder.load(tiny_text, device="cpu"), tmp_path, once, monkeypatch, times=2, skips=2)
    assert all(torch.equal(before[1][name], value) for name, value in before[0].items())  # the first was no update
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    left_out = [row for row in rows if row.get("event") == "skipped"]
    assert [row["step"] for row in left_out] == [AT + 1, AT + 2]
    assert "the gradient's norm is nan" in left_out[0]["problem"]
    assert [step for step, *_ in faulting.losses(tmp_path)] == [1, 2, 3, *range(AT + 3, faulting.STEPS + 1)]
    with pytest.raises(Diverged):
        trained(Embedder.load(tiny_text, device="cpu"), tmp_path / "again", once, monkeypatch, times=2, skips=1)


def test_spikes_stand_out():
    spikes = Spikes(window=30, least=20)
    assert [spikes(1.0 + n % 3 / 100) for n in range(25)] == [None] * 25
    assert spikes(1.4) is None  # by less than half
    assert spikes(float("nan")) is None
    assert spikes(9.0) == pytest.approx(1.02, abs=0.03)
    assert Spikes()(9.0) is None  # nothing to compare with yet


def test_a_source_whose_losses_are_always_high_is_no_spike():
    """A batch is of one data set: every third here of a hard one."""
    spikes, losses = Spikes(least=12), [(1.0 + n % 2 / 100, "easy") if n % 3 else (9.0, "hard") for n in range(60)]
    assert [spikes(*step) for step in losses] == [None] * 60
    assert spikes(9.0, "easy") == pytest.approx(1.0, abs=0.01)
