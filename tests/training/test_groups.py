"""Batches of examples that are taken for each other: who meets whom, and that everybody agrees on it."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hardwon.errors import ArtifactError, RecipeError
from hardwon.items import Candidate, Example, Item
from hardwon.losses import InfoNCE
from hardwon.models import Embedder, cached
from hardwon.training import Groups, Settings, groups, run, train
from hardwon.training.batches import batches, plan_epoch
from hardwon.training.groups import FILE, group


class Planted:
    """Vectors by the number that ends a text: texts of one family (number // 4) lie together."""

    fingerprint, dim = "planted", 16

    def encode(self, items, *, progress=""):
        made = []
        for item in items:
            number = int(item.text.split()[-1])
            rng = np.random.default_rng(number + 1000 * item.text.startswith("q"))
            centre = np.random.default_rng(10_000 + number // 4).normal(size=16)
            made.append(centre / np.linalg.norm(centre) + 0.05 * rng.normal(size=16))
        rows = np.array(made, dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def examples(count, source=lambda n: "", related=lambda n: frozenset()):
    return [Example(Item(f"q {n}"), (Candidate(Item(f"g {n}"), origin="gold"),), source(n), related(n)) for n in range(count)]


def members(numbers):
    made = {}
    for n, number in enumerate(numbers):
        made.setdefault(number, set()).add(n)
    return sorted(map(sorted, made.values()))


def test_families_find_each_other():
    numbers = group(examples(40), Planted(), Groups(size=4, skip=0), seed=0)
    assert members(numbers) == [list(range(n, n + 4)) for n in range(0, 40, 4)]
    assert numbers == group(examples(40), Planted(), Groups(size=4, skip=0), seed=0)


def test_sources_are_kept_apart():
    numbers = group(examples(40, source=lambda n: "ab"[n % 2]), Planted(), Groups(size=4, skip=0), seed=0)
    assert all(len({n % 2 for n in some}) == 1 for some in members(numbers))
    assert {n for some in members(numbers) for n in some} == set(range(40))


def test_some_sources_alone_are_grouped():
    """Nothing of the others is encoded, and their order is the one without groups."""

    class Counting(Planted):
        asked = 0

        def encode(self, items, *, progress=""):
            self.asked += len(items)
            return super().encode(items)

    rows, encoder = examples(40, source=lambda n: "ab"[n // 20]), Counting()
    numbers = group(rows, encoder, Groups(size=4, skip=0, sources=("b",)), seed=0)
    assert members(numbers) == [[n] for n in range(20)] + [list(range(n, n + 4)) for n in range(20, 40, 4)]
    assert encoder.asked == 2 * 20
    sources = [row.source for row in rows]
    plain, some = (sorted(b for b in plan_epoch(sources, 8, 0, 0, g) if b[0] < 20) for g in (None, numbers))
    assert plain == some
    with pytest.raises(RecipeError, match=r"'c'.*Valid: a, b"):
        group(rows, encoder, Groups(sources=("c",)), seed=0)


def test_what_is_known_to_belong_makes_nobody_a_neighbour():
    """All of a family are related, so each must look elsewhere."""
    family = {n: frozenset(Item(f"g {m}").content for m in range(n // 4 * 4, n // 4 * 4 + 4)) for n in range(16)}
    numbers = group(examples(16, related=family.__getitem__), Planted(), Groups(size=2, skip=0), seed=0)
    assert all(len({n // 4 for n in some}) == len(some) for some in members(numbers))


def test_the_nearest_can_be_passed_over():
    """Three of each family are near: all of them skipped, none of the family meet."""
    numbers = group(examples(16), Planted(), Groups(size=2, skip=3, depth=12), seed=0)
    assert all(len({n // 4 for n in some}) == len(some) for some in members(numbers))


def test_one_example_has_no_neighbours():
    assert group(examples(1), Planted(), Groups(), seed=0) == [0]


@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.integers(2, 9), st.integers(0, 3))
def test_an_epoch_holds_everybody_once_at_most_and_groups_stay_together(groups, size, epoch):
    sources = ["a" if number % 2 else "b" for number in groups]
    plan = plan_epoch(sources, size, 0, epoch, groups)
    rows = [n for batch in plan for n in batch]
    assert len(set(rows)) == len(rows)
    counts = Counter(n for batch in plan_epoch(sources, size, 0, epoch) for n in batch)
    assert len(rows) == sum(counts.values())  # as many as without groups
    for batch in plan:
        assert len({sources[n] for n in batch}) == 1
        inner = [groups[n] for n in batch]
        runs = [number for place, number in enumerate(inner) if place == 0 or inner[place - 1] != number]
        assert len(set(runs)) == len(runs)  # members stand side by side


def test_another_epoch_has_other_batches_of_the_same_groups():
    groups = [n // 4 for n in range(32)]
    one, other = (plan_epoch([""] * 32, 8, 0, epoch, groups) for epoch in (0, 1))
    assert one != other
    for plan in (one, other):
        assert all(set(Counter(groups[n] for n in batch).values()) == {4} for batch in plan)


def test_batches_are_harder():
    """Of the candidates of a batch, more are near each query than in random batches."""
    rows, encoder = examples(64), Planted()
    numbers = group(rows, encoder, Groups(size=4, skip=0), seed=0)

    def hardest(groups):
        found = []
        for batch in batches(rows, size=16, steps=4, groups=groups):
            scores = torch.from_numpy(encoder.encode(batch.queries) @ encoder.encode(batch.candidates).T)
            found.append(scores.masked_fill(batch.targets[:].gold, -1).amax(dim=1).mean())
        return float(torch.stack(found).mean())

    assert hardest(numbers) > 0.85
    assert hardest(None) < 0.8


@pytest.mark.parametrize(
    ("wrong", "match"), [({"size": 1}, "size must be at least 2"), ({"skip": -1}, "skip"), ({"depth": 0}, "depth")]
)
def test_settings_that_cannot_be(wrong, match):
    with pytest.raises(RecipeError, match=match):
        Groups(**wrong)


@pytest.fixture
def some():
    words = ("red", "blue", "green", "fox", "bar", "circle", "above", "square")
    return [Example(Item(f"{a} {b}"), (Candidate(Item(f"the {a} {b}"), origin="gold"),)) for a in words for b in words]


def test_training_keeps_its_groups_for_the_model_it_began_with(tiny_text, text_model, some, tmp_path, monkeypatch):
    how = Groups(size=4)
    train(text_model, some, InfoNCE(0.1), steps=3, settings=Settings(batch_size=8, groups=how), out=tmp_path)
    kept = json.loads((tmp_path / FILE).read_text())["groups"]
    assert len(kept) == len(some)
    assert max(Counter(kept).values()) == 4
    monkeypatch.setattr(groups, "group", lambda *_, **__: pytest.fail("grouped again"))
    assert groups.agreed(some, Embedder.load(tiny_text, device="cpu"), how, seed=0, out=tmp_path) == kept
    for model, examples, seed in ((text_model, some, 0), (Embedder.load(tiny_text, device="cpu"), some[1:], 0)):
        with pytest.raises(pytest.fail.Exception):
            groups.agreed(examples, model, how, seed=seed, out=tmp_path)


def test_a_run_that_goes_on_ends_as_one_that_was_not_stopped(tiny_text, some, tmp_path, monkeypatch):
    settings = Settings(batch_size=8, groups=Groups(size=4))
    whole = train(Embedder.load(tiny_text, device="cpu"), some, InfoNCE(0.1), steps=6, settings=settings)
    monkeypatch.setattr(run, "SAVE_EVERY_S", 0.0)
    stopping = (2, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(
            Embedder.load(tiny_text, device="cpu"),
            some,
            InfoNCE(0.1),
            steps=6,
            settings=settings,
            out=tmp_path,
            validate=stopping,
        )
    again = train(Embedder.load(tiny_text, device="cpu"), some, InfoNCE(0.1), steps=6, settings=settings, out=tmp_path)
    for (name, one), (_, other) in zip(whole.module.named_parameters(), again.module.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    plain = train(Embedder.load(tiny_text, device="cpu"), some, InfoNCE(0.1), steps=6, settings=Settings(batch_size=8))
    assert not all(map(torch.equal, plain.module.parameters(), whole.module.parameters()))


def test_a_run_that_goes_on_believes_its_groups_whatever_its_model_is_like(tiny_text, text_model, some, tmp_path, monkeypatch):
    """A first run has aligned the model before it grouped with it; one that goes on loads it as it was."""
    how, fresh = Groups(size=4), Embedder.load(tiny_text, device="cpu")
    kept = groups.agreed(some, fresh, how, seed=0, out=tmp_path)
    with torch.no_grad():
        next(fresh.module.parameters()).add_(0.01)
    monkeypatch.setattr(groups, "group", lambda *_, **__: pytest.fail("grouped again"))
    torn = tmp_path / "checkpoint/step-0000002"
    torn.mkdir(parents=True)  # killed while its first one was written: there is nothing to go on from
    with pytest.raises(pytest.fail.Exception):
        groups.agreed(some, fresh, how, seed=0, out=tmp_path)
    (torn / "manifest.json").write_text("{}")
    assert groups.agreed(some, fresh, how, seed=0, out=tmp_path) == kept
    second = replace(some[0], candidates=(*some[0].candidates, Candidate(Item("another"), origin="gold")))
    for examples, settings, seed in (
        (some[1:], how, 0),
        ([second, *some[1:]], how, 0),
        (some, Groups(size=5), 0),
        (some, how, 1),
    ):
        with pytest.raises(ArtifactError, match="are of other examples, settings or seed"):
            groups.agreed(examples, fresh, settings, seed=seed, out=tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(ArtifactError, match=r"groups that its run began with are missing .* or delete .*checkpoint"):
        groups.agreed(some, fresh, how, seed=0, out=tmp_path)


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", '{"groups": 3}', '{"groups": [1, "a"]}', '{"made from": "x"}', "\x00"]
)
def test_groups_that_cannot_be_read(text_model, some, tmp_path, damage, monkeypatch):
    """A new run makes them anew; one that goes on says what is wrong."""
    monkeypatch.setattr(groups, "group", lambda *_, **__: list(range(len(some))))
    (tmp_path / FILE).write_text(damage)
    assert groups.agreed(some, text_model, Groups(size=4), seed=0, out=tmp_path) == list(range(len(some)))
    (tmp_path / "checkpoint/step-0000002").mkdir(parents=True)
    (tmp_path / "checkpoint/step-0000002/manifest.json").write_text("{}")
    (tmp_path / FILE).write_text(damage)
    with pytest.raises(ArtifactError, match="are missing or damaged"):
        groups.agreed(some, text_model, Groups(size=4), seed=0, out=tmp_path)


def test_a_grouping_that_was_stopped_embeds_nothing_again(tiny_text, some, tmp_path, monkeypatch):
    how, model = Groups(size=4), Embedder.load(tiny_text, device="cpu")
    monkeypatch.setattr(cached, "CHUNK", 16)
    truth = groups.agreed(some, model, how, seed=0, out=None)
    made, encode = [], Embedder.encode

    def stopping(self, items, **told):
        if len(made) == 80:
            raise KeyboardInterrupt
        made.extend(items)
        return encode(self, items, **told)

    monkeypatch.setattr(Embedder, "encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        groups.agreed(some, model, how, seed=0, out=tmp_path / "run")
    again = Embedder.load(tiny_text, device="cpu")
    monkeypatch.setattr(Embedder, "encode", lambda self, items, **told: made.extend(items) or encode(self, items, **told))
    assert groups.agreed(some, again, how, seed=0, out=tmp_path / "run") == truth
    assert len(made) == len(set(made)) == 128
    assert [file.name for file in (tmp_path / "run").iterdir()] == [FILE]  # the vectors are gone
