import math

import pytest
import torch
from torch import nn

from hardwon.errors import Diverged, RecipeError
from hardwon.losses import InfoNCE
from hardwon.training.batches import batches
from hardwon.training.loop import Settings, batch_keys, fit, optimizer_for, schedule, without_dropout
from hardwon.training.step import Memory, embedder_step


class TestSchedule:
    def test_rises_in_a_line_and_falls_as_a_cosine(self):
        shares = [schedule(step, 100, 0.1) for step in range(100)]
        assert shares[:10] == pytest.approx([n / 10 for n in range(1, 11)])
        assert shares[10] == 1.0
        assert shares[55] == pytest.approx(0.05 + 0.95 / 2)
        assert shares[99] == pytest.approx(0.05, abs=1e-3)
        assert shares[10:] == sorted(shares[10:], reverse=True)

    @pytest.mark.parametrize(("steps", "warmup"), [(1, 0.1), (2, 0.5), (5, 1.0), (3, 0.0)])
    def test_stays_a_share(self, steps, warmup):
        assert all(0 < schedule(step, steps, warmup) <= 1 for step in range(steps))

    def test_without_warm_up_it_starts_at_the_peak(self):
        assert schedule(0, 10, 0.0) == 1.0


class TestSettings:
    def test_defaults_are_a_value(self):
        assert Settings() == Settings(memory=Memory())
        assert hash(Settings()) == hash(Settings())

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("precision", "fp16", "unknown precision 'fp16': did you mean 'bf16'"),
            ("on_error", "skp", "unknown on_error 'skp': did you mean 'skip'"),
            ("max_bad_fraction", 2.0, r"max_bad_fraction must lie in \[0, 1\], got 2.0"),
            ("batch_size", 0, "batch_size must be above 0, got 0"),
            ("learning_rate", 0.0, "learning_rate must be above 0, got 0.0"),
            ("learning_rate", math.nan, "learning_rate must be above 0, got nan"),
            ("clip", -1.0, "clip must be above 0, got -1.0"),
            ("batch_size", 1, "batch_size must be at least 2: in-batch negatives come from the other examples"),
        ],
    )
    def test_values_that_make_no_sense(self, field, value, message):
        # Built without the checks of types, as a recipe of a user would be.
        settings = object.__new__(Settings)
        for name, given in {**vars(Settings()), field: value}.items():
            object.__setattr__(settings, name, given)
        with pytest.raises(RecipeError, match=message):
            settings.__post_init__()


class TestOptimizer:
    def test_one_group_unless_parts_have_a_pace_of_their_own(self, text_model):
        (group,) = optimizer_for(text_model.module, Settings(learning_rate=0.002, weight_decay=0.3)).param_groups
        assert (group["lr"], group["peak"], group["weight_decay"]) == (0.002, 0.002, 0.3)
        assert len(group["params"]) == len(list(text_model.module.parameters()))

    def test_parts_with_a_pace_of_their_own(self, vlm):
        vlm.freeze(["vision"])
        rates = (("multi_modal_projector", 0.01), ("encoder.layer.1", 0.1))
        groups = optimizer_for(vlm.module, Settings(learning_rate=0.001, rates=rates)).param_groups
        named = {id(p): name for name, p in vlm.module.named_parameters()}
        found = {group["peak"]: {named[id(p)] for p in group["params"]} for group in groups}
        assert set(found) == {0.001, 0.01, 0.1}
        assert {name.split(".")[2] for name in found[0.01]} == {"multi_modal_projector"}
        assert all("encoder.layer.1" in name for name in found[0.1])
        assert not any("vision_tower" in name for names in found.values() for name in names)

    @pytest.mark.parametrize("freeze", [(), ("vision",)])
    def test_a_part_that_is_not_trained(self, vlm, freeze):
        vlm.freeze(freeze)
        part = "vision_tower" if freeze else "projectile"
        with pytest.raises(RecipeError, match=f"no trainable parameter belongs to {part} \\(named in rates\\)"):
            optimizer_for(vlm.module, Settings(rates=((part, 0.1), ("layer.0", 0.1))))


class TestFit:
    def updates(self, model, examples, loss, settings, steps=6):
        stream = batches(examples, size=settings.batch_size, steps=steps)
        optimizer = optimizer_for(model.module, settings)
        return fit(model, steps, stream, lambda b: embedder_step(model, loss, b, settings.memory), optimizer, settings)

    def test_yields_once_per_update(self, text_model, texts, weights):
        settings = Settings(batch_size=8, learning_rate=1e-3, warmup=0.5)
        before = weights(text_model)
        for n, step in enumerate(self.updates(text_model, texts, InfoNCE(0.1), settings)):
            assert step.number == n
            assert step.rate == schedule(n, 6, 0.5)
            assert step.loss > 0
            assert step.norm > 0
            assert step.seconds > 0
            after = weights(text_model)
            assert any(not torch.equal(after[name], before[name]) for name in before)
            before = after
        assert n == 5

    def test_the_size_of_an_update_follows_the_schedule(self, text_model, texts, weights):
        settings = Settings(batch_size=8, learning_rate=1e-3, warmup=0.5, weight_decay=0.0)
        before = weights(text_model)
        next(self.updates(text_model, texts, InfoNCE(0.1), settings, steps=8))
        after = weights(text_model)
        moved = max(float((after[name] - before[name]).abs().max()) for name in before)
        assert moved == pytest.approx(1e-3 / 4, rel=1e-2)  # Adam's first step is the learning rate itself

    def test_frozen_parts_do_not_move(self, vlm, shapes, weights):
        vlm.freeze(["vision", "words"]).body.settle_vision()
        before = weights(vlm)
        settings = Settings(batch_size=4, learning_rate=1e-2)
        for _ in self.updates(vlm, shapes, InfoNCE(0.1), settings, steps=2):
            pass
        after = weights(vlm)
        moved = {name for name in before if not torch.equal(after[name], before[name])}
        assert not any(".vision_tower." in name or "word_embeddings" in name for name in moved)
        assert any("multi_modal_projector" in name for name in moved)

    def test_a_gradient_that_is_not_finite_changes_nothing(self, text_model, texts, weights):
        calls = []

        def breaks(scores, targets):
            calls.append(1)
            good = InfoNCE(0.1)(scores, targets)
            return good if len(calls) < 3 else good + (scores - scores.detach()).abs().sqrt().sum()

        settings = Settings(batch_size=8, learning_rate=1e-3)
        updates = self.updates(text_model, texts, breaks, settings)
        next(updates), next(updates)
        before = weights(text_model)
        with pytest.raises(Diverged, match=r"the gradient's norm is nan at step 2; .* Lower the learning rate\.") as caught:
            next(updates)
        after = weights(text_model)
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert len(caught.value.keys) == 8
        assert all(p.grad is None for p in text_model.module.parameters())

    def test_lower_precision_trains_close_by(self, fresh_text, texts, weights):
        losses = {}
        for precision in ("fp32", "bf16"):
            model = fresh_text()
            without_dropout(model.module)
            settings = Settings(batch_size=8, learning_rate=1e-3, precision=precision, memory=Memory(60, 60))
            losses[precision] = [step.loss for step in self.updates(model, texts, InfoNCE(0.1), settings, steps=4)]
            assert all(value.dtype == torch.float32 for value in weights(model).values())
        assert losses["bf16"] != losses["fp32"]
        assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)

    @pytest.mark.parametrize(("gain", "truth"), [(0.01, "fp32"), (5.0, "bf16")])
    def test_the_faster_precision(self, fresh_text, texts, monkeypatch, gain, truth):
        monkeypatch.setattr("hardwon.models.precision.bf16_gain", lambda device: gain)
        losses = {}
        for precision in ("auto", "fp32", "bf16"):
            model = fresh_text()
            without_dropout(model.module)
            settings = Settings(batch_size=8, learning_rate=1e-3, precision=precision)
            losses[precision] = [step.loss for step in self.updates(model, texts, InfoNCE(0.1), settings, steps=3)]
        assert losses["fp32"] != losses["bf16"]
        assert losses["auto"] == losses[truth]


def test_keys_of_both_kinds_of_batches(texts):
    from hardwon.training.batches import listed, shared

    keys = [example.query.key for example in texts[:3]]
    assert batch_keys(shared(texts[:3], 0)) == keys
    assert batch_keys(listed(texts[:3], 0)) == keys


def test_without_dropout(text_model, texts):
    items = [example.query for example in texts[:4]]
    text_model.body.train()
    assert not torch.equal(text_model.forward(items), text_model.forward(items))
    without_dropout(text_model.module)
    assert torch.equal(text_model.forward(items), text_model.forward(items))
    assert not any(isinstance(part, nn.Dropout) and part.p for part in text_model.module.modules())
