"""No training step is lost to bad input: it is named before the first one, or left out and listed."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import vlms

from hardwon.errors import BadItems, BadMedia, DataError, ModelError
from hardwon.items import Candidate, Example, Item
from hardwon.losses import InfoNCE, Listwise
from hardwon.models import Embedder, Reranker, preflight
from hardwon.training import Settings, train

QUICK = Settings(batch_size=4, negatives=2, learning_rate=1e-3)
SKIP = replace(QUICK, on_error="skip", max_bad_fraction=0.5)
FROZEN = {"freeze": ("vision",)}


@pytest.fixture
def damaged(pictures, tmp_path):
    """A picture that only decoding finds to be broken."""
    data = bytearray(pictures["red square"].read_bytes())
    start = data.index(b"IDAT") + 8
    data[start : start + 20] = bytes(20)
    (tmp_path / "damaged.png").write_bytes(bytes(data))
    return tmp_path / "damaged.png"


def put(example, query=None, gold=None, negative=None):
    """The example with a bad query, gold or first negative."""
    golds = [Candidate(gold or item, origin="gold") for item in example.gold]
    negatives = [*([Candidate(negative)] if negative else []), *example.negatives[bool(negative) :]]
    return replace(example, query=query or example.query, candidates=(*golds, *negatives))


@pytest.fixture
def spoilt(shapes, damaged, tmp_path):
    """Six of twenty examples with something bad, and what is left when that is left out."""
    broken, missing = Item(images=(damaged,)), Item(images=(tmp_path / "gone.png",))
    many = Item(text="many", images=shapes[0].gold[0].images * 40)
    both = put(shapes[6], gold=broken)
    both = replace(both, candidates=(*both.candidates, *(c for c in shapes[6].candidates if c.origin == "gold")))
    bad = {1: put(shapes[1], query=broken), 2: put(shapes[2], gold=missing), 3: put(shapes[3], negative=many)}
    bad |= {4: put(shapes[4], negative=broken), 5: put(shapes[5], query=many), 6: both}
    examples = tuple(bad.get(n, example) for n, example in enumerate(shapes))
    left = []
    for n, example in enumerate(examples):
        if n not in (1, 2, 5):
            good = tuple(c for c in example.candidates if c.item not in (broken, missing, many))
            left.append(replace(example, candidates=good))
    return examples, tuple(left)


def losses_of(out):
    return [row["loss"] for row in rows_of(out) if "loss" in row]


def rows_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("parts", [{}, FROZEN], ids=["learning to see", "frozen"])
class TestEmbedder:
    def test_everything_is_named_before_the_first_step(self, vlm, spoilt, weights, tmp_path, parts):
        before = weights(vlm)
        with pytest.raises(BadItems, match=r'^3 items of 20 examples(.|\n)*on_error="skip"') as caught:
            train(vlm, spoilt[0], InfoNCE(0.1), steps=2, settings=replace(QUICK, **parts), out=tmp_path / "out")
        places = {entry.item.label: entry.where for entry in caught.value.items}
        assert places == {
            "'<damaged.png>'": "query of example 2 and 2 more",
            "'<gone.png>'": "gold of example 3",
            repr("<red-square.png> " * 40 + "many")[:81] + " ...'": "negative of example 4 and 1 more",
        }
        assert not (tmp_path / "out").exists()
        assert all(torch.equal(value, before[name]) for name, value in weights(vlm).items())

    def test_a_run_without_it_is_a_run_on_the_rest(self, fresh_vlm, spoilt, tmp_path, capsys, parts):
        examples, left = spoilt
        train(fresh_vlm(), examples, InfoNCE(0.1), steps=4, settings=replace(SKIP, **parts), out=tmp_path / "skip")
        said = capsys.readouterr().err
        train(fresh_vlm(), left, InfoNCE(0.1), steps=4, settings=replace(QUICK, **parts), out=tmp_path / "left")
        assert losses_of(tmp_path / "skip") == losses_of(tmp_path / "left")
        assert "3 items left out, and 3 of 20 examples with them" in said.replace("\n", " ")
        listed = [row["problem"] for row in rows_of(tmp_path / "skip") if row.get("event") == "left out"]
        assert len(listed) == 3
        assert all(name in " ".join(listed) for name in ("damaged.png", "gone.png", "160 tokens"))

    def test_damage_that_only_decoding_finds(self, fresh_vlm, shapes, damaged, tmp_path, parts):
        examples = (put(shapes[0], gold=Item(images=(damaged,))), *shapes[1:])
        with pytest.raises(BadItems, match=r"gold of example 1: .*damaged\.png is broken"):
            train(fresh_vlm(), examples, InfoNCE(0.1), steps=2, settings=replace(QUICK, **parts))
        train(fresh_vlm(), examples, InfoNCE(0.1), steps=2, settings=replace(SKIP, **parts), out=tmp_path)
        assert len(losses_of(tmp_path)) == 2

    def test_too_much_of_it_is_an_error_all_the_same(self, vlm, spoilt, parts):
        with pytest.raises(BadItems, match=r'3 examples would be left out, but on_error="skip" allows 10.0% of them'):
            train(vlm, spoilt[0], InfoNCE(0.1), steps=2, settings=replace(SKIP, max_bad_fraction=0.1, **parts))

    def test_pictures_are_decoded_once_before_and_not_at_all_where_features_are_made(self, vlm, shapes, monkeypatch, parts):
        looked = []
        monkeypatch.setattr(preflight, "open_picture", looked.append)
        train(vlm, shapes, InfoNCE(0.1), steps=1, settings=replace(QUICK, **parts))
        assert len(looked) == (0 if parts else 20)

    def test_a_picture_that_vanishes_in_the_middle(self, vlm, shapes, pictures, tmp_path, parts):
        folder = tmp_path / "some"
        shutil.copytree(pictures["red square"].parent, folder)
        moved = [
            Example(e.query, tuple(replace(c, item=Item(images=(folder / c.item.images[0].name,))) for c in e.candidates))
            for e in shapes
        ]

        def after_a_step():
            shutil.rmtree(folder)
            return 0.0

        with pytest.raises(BadMedia, match=r"some/[a-z-]+\.png does not exist.* \(in '<[a-z-]+\.png>'\)"):
            train(vlm, moved, InfoNCE(0.1), steps=3, settings=replace(QUICK, **parts), out=tmp_path, validate=(1, after_a_step))
        assert len(losses_of(tmp_path)) == 1


def test_what_the_model_does_not_read(text_model, shapes):
    with pytest.raises(
        BadItems, match=r"20 items of 20 examples cannot be used:\n  gold of example 1.*this model reads text only"
    ):
        train(text_model, shapes, InfoNCE(0.1), steps=2, settings=QUICK)
    with pytest.raises(DataError, match="at least 2 examples, but only 0 of 20 can be used"):
        train(text_model, shapes, InfoNCE(0.1), steps=2, settings=replace(SKIP, max_bad_fraction=1.0))


def test_a_model_that_fails_on_every_picture(shapes, tmp_path):
    model = Embedder.load(vlms.build_llava(tmp_path / "model", patch=16), device="cpu")
    with pytest.raises(ModelError, match=r"cannot read item .*tokens do not match"):
        train(model, shapes, InfoNCE(0.1), steps=2, settings=QUICK, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


class TestReranker:
    @pytest.mark.filterwarnings("ignore:query and candidate come to more than")
    def test_items_that_it_cannot_read_together(self, vlm, shapes, tmp_path):
        model = Reranker.start_from(vlm)
        wide = Item(text="nine", images=shapes[0].gold[0].images * 9)
        query = Item(images=shapes[1].gold[0].images * 8)  # fits with one picture, not with nine
        examples = (put(shapes[0], query=query, negative=wide), put(shapes[1], negative=wide), *shapes[2:])
        with pytest.raises(BadItems, match=r"1 item of 20 examples(.|\n)*negative of example 1: .* comes to 68 tokens"):
            train(model, examples, Listwise(), steps=1, settings=QUICK)
        train(model, examples, Listwise(), steps=1, settings=SKIP, out=tmp_path)
        assert len(losses_of(tmp_path)) == 1

    def test_strangers_that_do_not_fit_are_passed_over(self, vlm, shapes, tmp_path):
        """Gold of others joins a list only where there is room for it."""
        model = Reranker.start_from(vlm)
        wide = Item(images=shapes[0].gold[0].images * 9)
        examples = [put(e, query=Item(images=e.gold[0].images * 8)) for e in shapes[:6]]
        examples += [put(e, gold=wide) for e in shapes[6:8]]
        settings = replace(QUICK, random_negatives=5)
        train(model, examples, Listwise(), steps=4, settings=settings, out=tmp_path)
        assert len(losses_of(tmp_path)) == 4
