import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from hardwon.errors import DataError, Diverged, ModelError, RecipeError
from hardwon.items import Example, Item
from hardwon.losses import AmplifiedInfoNCE, FalseNegatives, InfoNCE, JudgeAlignment, Listwise, Pairwise, gradient_report
from hardwon.models import Embedder, Reranker
from hardwon.training import LearnedTemperature, Memory, Objective, Settings, train
from hardwon.training.batches import batches

QUICK = Settings(batch_size=10, negatives=1, learning_rate=3e-3)


def rows_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses_of(out):
    return [row["loss"] for row in rows_of(out) if "loss" in row]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class TestLearns:
    def test_text(self, text_model, texts, tmp_path):
        made = train(text_model, texts, InfoNCE(0.1), steps=30, settings=QUICK, out=tmp_path)
        assert made is text_model
        assert not made.module.training
        losses = losses_of(tmp_path)
        assert len(losses) == 30
        assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])
        queries, golds = made.encode([e.query for e in texts]), made.encode([e.gold[0] for e in texts])
        assert ((queries @ golds.T).argmax(axis=1) == np.arange(len(texts))).mean() >= 0.7

    def test_pictures_behind_a_frozen_tower(self, vlm, shapes, tmp_path):
        settings = Settings(batch_size=10, learning_rate=3e-3, freeze=("vision",), memory=Memory(200, 200))
        train(vlm, shapes, InfoNCE(0.1), steps=25, settings=settings, out=tmp_path)
        losses = losses_of(tmp_path)
        assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])
        assert vlm.body.vision is not None

    def test_a_judges_grades(self, text_model, texts, tmp_path):
        loss = JudgeAlignment(0.2) + 0.5 * InfoNCE(0.1)
        train(text_model, texts, loss, steps=15, settings=QUICK, out=tmp_path)
        losses = losses_of(tmp_path)
        assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])

    def test_a_reranker(self, text_model, texts, tmp_path):
        model = Reranker.start_from(text_model)
        settings = Settings(batch_size=10, negatives=1, random_negatives=2, learning_rate=3e-3)
        assert train(model, texts, Pairwise() + Listwise(), steps=25, settings=settings, out=tmp_path) is model
        losses = losses_of(tmp_path)
        assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])

    def test_a_reranker_of_pictures(self, vlm, shapes, tmp_path):
        model = Reranker.start_from(vlm, layers=1)
        settings = Settings(batch_size=10, negatives=2, learning_rate=3e-3, freeze=("vision",))
        train(model, shapes, Listwise(), steps=15, settings=settings, out=tmp_path)
        losses = losses_of(tmp_path)
        assert np.mean(losses[-5:]) < 0.92 * np.mean(losses[:5])

    def test_what_was_trained_is_saved(self, text_model, texts, tmp_path):
        items = [e.query for e in texts]
        before = text_model.encode(items)
        train(text_model, texts, InfoNCE(0.1), steps=3, settings=QUICK)
        text_model.save(tmp_path / "model")
        loaded = Embedder.load(tmp_path / "model", device="cpu")
        assert np.abs(text_model.encode(items) - before).max() > 1e-2
        np.testing.assert_allclose(loaded.encode(items), text_model.encode(items), atol=1e-6)


class TestRepeats:
    def test_the_same_seed_gives_the_same_weights(self, fresh_text, texts, weights, tmp_path):
        made = []
        for n, seed in enumerate((1, 1, 2)):
            model = fresh_text()
            torch.manual_seed(n)  # the state of the caller plays no part
            settings = Settings(batch_size=8, negatives=1, dropout=True, seed=seed, learning_rate=1e-3)
            train(model, texts, InfoNCE(0.1), steps=5, settings=settings, out=tmp_path / str(n))
            made.append((weights(model), losses_of(tmp_path / str(n))))
        assert equal(made[0][0], made[1][0])
        assert made[0][1] == made[1][1] != made[2][1]
        assert not equal(made[0][0], made[2][0])

    def test_pictures_kept_or_computed_give_the_same_losses(self, fresh_vlm, tiny_vlm, shapes, tmp_path):
        """With a frozen tower, features from the disk, from memory and from the generic path are the same features."""
        settings = Settings(batch_size=8, negatives=1, dropout=True, learning_rate=1e-3, freeze=("vision",))
        models = {"memory": fresh_vlm(), "disk": Embedder.load(tiny_vlm, device="cpu", vision_cache=tmp_path / "cache")}
        models["generic"] = fresh_vlm()
        models["generic"].body.settle_vision = lambda: None
        for name, model in models.items():
            train(model, shapes, InfoNCE(0.1), steps=4, settings=settings, out=tmp_path / name)
        assert models["generic"].body.vision is None
        assert losses_of(tmp_path / "memory") == losses_of(tmp_path / "disk")
        assert losses_of(tmp_path / "generic") == pytest.approx(losses_of(tmp_path / "memory"), rel=1e-4)

    def test_the_callers_generator_is_left_alone(self, text_model, texts):
        state = torch.random.get_rng_state()
        train(text_model, texts, InfoNCE(0.1), steps=2, settings=Settings(batch_size=4, dropout=True))
        assert torch.equal(torch.random.get_rng_state(), state)


class TestLog:
    def test_one_row_per_step(self, text_model, texts, tmp_path):
        train(text_model, texts, InfoNCE(0.1), steps=7, settings=QUICK, out=tmp_path / "new" / "folder")
        rows = rows_of(tmp_path / "new" / "folder")
        assert [row["step"] for row in rows] == list(range(1, 8))
        speed = {"items", "masked", "items_per_second", "memory_mib", "seconds"}
        assert set(rows[0]) == {"step", "source", "loss", "gradient_norm", "rate", "learning_rate", *speed}
        assert rows[0]["rate"] == 1.0

    def test_validation(self, text_model, texts, tmp_path):
        seen = []

        def check():
            seen.append(text_model.encode([texts[0].query])[0, 0])
            return float(len(seen))

        train(text_model, texts, InfoNCE(0.1), steps=7, settings=QUICK, out=tmp_path, validate=(3, check))
        validated = [(row["step"], row["validation"]) for row in rows_of(tmp_path) if "validation" in row]
        assert validated == [(3, 1.0), (6, 2.0), (7, 3.0)]
        assert len(set(seen)) == 3

    def test_validation_does_not_disturb_training(self, fresh_text, texts, weights):
        made = []
        settings = Settings(batch_size=8, dropout=True)
        for validate in (True, False):
            model = fresh_text()

            def check(model=model):
                model.encode([texts[0].query])
                return 0.0

            train(model, texts, InfoNCE(0.1), steps=4, settings=settings, validate=(1, check) if validate else None)
            made.append(weights(model))
        assert equal(*made)

    def test_nothing_is_written_without_a_folder(self, text_model, texts, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        train(text_model, texts, InfoNCE(0.1), steps=2, settings=QUICK)
        assert list(tmp_path.iterdir()) == []

    def test_the_bar_has_the_title(self, text_model, texts, capsys):
        train(text_model, texts, InfoNCE(0.1), steps=2, settings=QUICK, title="learning shapes")
        assert "learning shapes: 2/2 steps" in capsys.readouterr().err


def first_step(model, examples, settings):
    """Scores and targets of the first batch, before any update."""
    (batch,) = batches(examples, size=settings.batch_size, steps=1, negatives=settings.negatives, seed=settings.seed)
    scores = torch.from_numpy(model.encode(batch.queries) @ model.encode(batch.candidates).T)
    return scores, batch.targets[:]


class TestSettings:
    def test_rules_take_candidates_out(self, text_model, texts, tmp_path):
        settings = replace(QUICK, false_negatives=FalseNegatives(student=0.05, judge=0.6))
        scores, targets = first_step(text_model, texts, settings)
        left = FalseNegatives(student=0.05, judge=0.6)(scores, targets)
        assert left.comparable.sum() < targets.comparable.sum() - len(scores)
        train(text_model, texts, InfoNCE(0.1), steps=1, settings=settings, out=tmp_path)
        assert losses_of(tmp_path) == [pytest.approx(float(InfoNCE(0.1)(scores, left)), rel=1e-4)]
        assert losses_of(tmp_path) != [pytest.approx(float(InfoNCE(0.1)(scores, targets)), rel=1e-2)]

    def test_rules_serve_rerankers_too(self, text_model, fresh_text, texts, tmp_path):
        losses = {}
        for name, rules in (("none", None), ("all", FalseNegatives(student=-10.0)), ("some", FalseNegatives(judge=0.6))):
            settings = Settings(batch_size=10, negatives=1, random_negatives=2, false_negatives=rules)
            try:
                train(Reranker.start_from(fresh_text()), texts, Listwise(), steps=1, settings=settings, out=tmp_path / name)
                losses[name] = losses_of(tmp_path / name)[0]
            except Diverged as error:
                losses[name] = str(error)
        assert losses["some"] < losses["none"] - 0.1  # a list is shorter by its judged candidate
        assert "every other candidate is masked" in losses["all"]

    def test_widths(self, text_model, texts, tmp_path):
        settings = replace(QUICK, widths=(8, 16))
        (batch,) = batches(texts, size=10, steps=1, negatives=1)
        q, c = (torch.from_numpy(text_model.encode(side)) for side in (batch.queries, batch.candidates))
        values = []
        for width in (8, 16, 32):
            short = [torch.nn.functional.normalize(side[:, :width], dim=1) for side in (q, c)]
            values.append(float(InfoNCE(0.1)(short[0] @ short[1].T, batch.targets[:])))
        train(text_model, texts, InfoNCE(0.1), steps=1, settings=settings, out=tmp_path)
        assert losses_of(tmp_path) == [pytest.approx(np.mean(values), rel=1e-4)]

    @pytest.mark.parametrize("loss", [InfoNCE(0.1), AmplifiedInfoNCE(0.1), JudgeAlignment(0.1) + 0.5 * InfoNCE(0.2)], ids=str)
    def test_a_temperature_is_learned_and_logged(self, text_model, texts, tmp_path, loss):
        settings = replace(QUICK, temperature=LearnedTemperature(0.02, 0.5, learning_rate=0.05))
        objective = Objective(loss, temperature=settings.temperature)
        (batch,) = batches(texts, size=10, steps=1, negatives=1)
        vectors = torch.from_numpy(text_model.encode([*batch.queries, *batch.candidates]))
        objective.slope(vectors, list(range(10)), list(range(10, len(vectors))), batch.targets)
        down = float(objective.log_temperature.grad) > 0
        train(text_model, texts, loss, steps=20, settings=settings, out=tmp_path)
        rows = rows_of(tmp_path)
        temperatures = [row["temperature"] for row in rows]
        assert len(temperatures) == 20
        # Adam's first step is as long as its learning rate, half of it while warming up, and no decay pulls at it.
        assert temperatures[0] == pytest.approx(0.1 * np.exp(0.05 * rows[0]["rate"] * (-1 if down else 1)), rel=1e-4)
        assert all(0.02 <= value <= 0.5 for value in temperatures)
        assert len(set(temperatures)) > 10

    def test_a_fixed_temperature_is_not_logged(self, text_model, texts, tmp_path):
        train(text_model, texts, InfoNCE(0.1), steps=1, settings=QUICK, out=tmp_path)
        assert "temperature" not in rows_of(tmp_path)[0]

    def test_gradient_reports(self, text_model, texts, tmp_path):
        settings = replace(QUICK, report_every=3)
        scores, targets = first_step(text_model, texts, settings)
        truth = gradient_report(InfoNCE(0.1, hardness=2.0), scores, targets).summary()
        train(text_model, texts, InfoNCE(0.1, hardness=2.0), steps=7, settings=settings, out=tmp_path)
        rows = [row for row in rows_of(tmp_path) if "gradient" in row]
        assert [row["step"] for row in rows] == [1, 4, 7]
        assert rows[0]["gradient"] == pytest.approx(truth, rel=1e-3, abs=2e-6)
        assert [row["step"] for row in rows_of(tmp_path) if "loss" in row] == list(range(1, 8))

    def test_a_report_without_grades_is_json_all_the_same(self, text_model, texts, tmp_path):
        bare = [Example(e.query, tuple(replace(c, relevance=None) for c in e.candidates), e.source) for e in texts]
        train(text_model, bare, InfoNCE(0.1), steps=1, settings=replace(QUICK, report_every=1), out=tmp_path)
        assert rows_of(tmp_path)[0]["gradient"]["false_negatives"] is None
        assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()

    def test_a_report_that_cannot_be_made_stops_nothing(self, text_model, texts, tmp_path, monkeypatch):
        """A report looks at the first queries of a batch; here at one, which may have nothing to be compared with."""
        whole = Objective.report
        monkeypatch.setattr(Objective, "report", lambda self, *args: whole(self, *args, most=1))
        everything = frozenset(candidate.item.content for e in texts for candidate in e.candidates)
        lonely = [replace(e, related=everything, candidates=e.candidates[:1]) for e in texts[4:]]
        settings = replace(QUICK, batch_size=20, report_every=1)
        train(text_model, [*texts[:4], *lonely], InfoNCE(0.1), steps=8, settings=settings, out=tmp_path)
        reports = [row["gradient"] for row in rows_of(tmp_path) if "gradient" in row]
        assert len(reports) == len(losses_of(tmp_path)) == 8
        assert None in reports
        assert any(reports)
        assert np.isfinite(losses_of(tmp_path)).all()

    def test_reports_do_not_disturb(self, fresh_text, texts, weights):
        made = []
        for every in (0, 1):
            model = fresh_text()
            train(model, texts, InfoNCE(0.1), steps=3, settings=replace(QUICK, report_every=every, dropout=True))
            made.append(weights(model))
        assert equal(*made)

    def test_a_rerankers_report(self, text_model, texts, tmp_path):
        model = Reranker.start_from(text_model)
        train(model, texts, Pairwise(), steps=3, settings=replace(QUICK, report_every=2), out=tmp_path)
        rows = [row for row in rows_of(tmp_path) if "gradient" in row]
        assert [row["step"] for row in rows] == [1, 3]
        assert rows[0]["gradient"]["positive"] == pytest.approx(0.5, abs=0.1)


class TestRefuses:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"widths": (8,)}, r"settings\.widths is about vectors; a reranker has none"),
            ({"temperature": LearnedTemperature()}, r"settings\.temperature is about vectors; a reranker has none"),
            (
                {"false_negatives": FalseNegatives(copies=0.95)},
                r"settings\.false_negatives\.copies compares vectors; a reranker has none",
            ),
        ],
    )
    def test_what_a_reranker_has_no_use_for(self, text_model, texts, settings, message):
        with pytest.raises(RecipeError, match=message):
            train(Reranker.start_from(text_model), texts, Listwise(), steps=1, settings=replace(QUICK, **settings))

    def test_widths_and_temperatures_that_cannot_be(self, text_model, texts, weights):
        before = weights(text_model)
        with pytest.raises(RecipeError, match="widths must be below the model's 32"):
            train(text_model, texts, InfoNCE(0.1), steps=1, settings=replace(QUICK, widths=(32,)))
        with pytest.raises(RecipeError, match=r"the temperature cannot be learned: Pairwise\(scale=1.0\) has none"):
            train(text_model, texts, Pairwise(), steps=1, settings=replace(QUICK, temperature=LearnedTemperature()))
        assert equal(weights(text_model), before)

    def test_no_steps(self, text_model, texts):
        with pytest.raises(RecipeError, match="steps must be at least 1, got 0"):
            train(text_model, texts, InfoNCE(), steps=0)

    @pytest.mark.parametrize("count", [0, 1])
    def test_too_few_examples(self, text_model, texts, count):
        with pytest.raises(DataError, match=f"training needs at least 2 examples, got {count}"):
            train(text_model, texts[:count], InfoNCE(), steps=1)

    def test_a_reranker_without_negatives(self, text_model, texts):
        model = Reranker.start_from(text_model)
        bare = [Example(e.query, e.candidates[:1]) for e in texts]
        message = "a reranker learns from each example's own negatives: mine some first, and set settings.negatives"
        for examples, settings in ((bare, QUICK), (texts, Settings())):
            with pytest.raises(DataError, match=message):
                train(model, examples, Pairwise(), steps=1, settings=settings)

    def test_an_unknown_part(self, text_model, texts):
        with pytest.raises(ModelError, match="no parameter belongs to 'vision'"):
            train(text_model, texts, InfoNCE(), steps=1, settings=Settings(freeze=("vision",)))

    def test_pictures_for_a_model_of_text(self, text_model, shapes):
        with pytest.raises(ModelError, match="this model reads text only"):
            train(text_model, shapes, InfoNCE(), steps=1)

    def test_a_loss_that_diverges(self, text_model, fresh_text, texts, weights, tmp_path):
        calls = []

        def breaks(scores, targets):
            calls.append(1)
            return InfoNCE(0.1)(scores, targets) * (1.0 if len(calls) < 3 else torch.nan)

        with pytest.raises(Diverged, match="the loss is nan at step 2; no weight was changed"):
            train(text_model, texts, breaks, steps=5, settings=QUICK, out=tmp_path)
        assert [row["step"] for row in rows_of(tmp_path)] == [1, 2]
        # As if it had been asked for the two good steps alone, at the same learning rates.
        other, before = fresh_text(), []

        def stops(scores, targets):
            before.append(weights(other))
            return InfoNCE(0.1)(scores, targets)

        train(other, texts, stops, steps=5, settings=QUICK)
        assert equal(weights(text_model), before[2])


def test_a_reranker_ignores_examples_without_negatives(text_model, texts, tmp_path):
    model = Reranker.start_from(text_model)
    seen = set()
    forward = type(model).forward

    def watch(pairs):
        seen.update(query.text for query, _ in pairs)
        return forward(model, pairs)

    model.forward = watch
    mixed = [*texts[:4], *(Example(Item(text=f"bare {n}"), texts[n].candidates[:1], "texts") for n in range(4))]
    train(model, mixed, Pairwise(), steps=4, settings=Settings(batch_size=4, negatives=1))
    assert seen == {e.query.text for e in texts[:4]}
