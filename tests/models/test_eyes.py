"""Features of the vision towers of chat models, kept: everything must be as if they had been computed anew."""

import shutil

import numpy as np
import pytest
import torch
import vlms

from hardwon.distributed import World
from hardwon.items import Candidate, Example, Item
from hardwon.losses import InfoNCE
from hardwon.models import Embedder, Reranker, eyes
from hardwon.pictures import open_picture
from hardwon.training import Settings, train, usable
from hardwon.training.batches import shared
from hardwon.training.step import Memory, embedder_step

LOSS = InfoNCE(0.1)
EYE = ("vision", "multi_modal_projector", "image_newline")  # all that features depend on


@pytest.fixture(params=vlms.DECODERS)
def folder(request, folders):
    return folders[request.param]


@pytest.fixture(params=["llava-onevision", "qwen3-vl"])
def either(request, folders):
    """The two that keep most."""
    return folders[request.param]


@pytest.fixture
def qwen(folders):
    """One of them where they do not differ."""
    return folders["qwen2-vl"]


@pytest.fixture
def load(tmp_path):
    """Loads a model with a cache, or without one."""
    return lambda folder, cache=True: Embedder.load(folder, device="cpu", vision_cache=tmp_path / "cache" if cache else None)


@pytest.fixture
def looks(monkeypatch):
    """Keys of the pictures that were opened, in order; to be cleared by the test."""
    opened = []

    def look(picture):
        opened.append(picture)
        return open_picture(picture)

    monkeypatch.setattr(eyes, "open_picture", look)
    return opened


@pytest.fixture(scope="session")
def mixed(shapes):
    """Items of every kind, some too long for the model."""
    plain, other, wide, tall, large = (shapes[name] for name in ("plain", "other", "wide", "tall", "large"))
    return [
        Item(text="a red square"),
        *(Item(images=(picture,)) for picture in (plain, other, wide, tall, large)),
        Item(images=(other,), text="what is it"),
        Item(images=(plain, other)),
        Item(text="the fox is above the yellow bar " * 3),
        Item(images=(other, wide, plain), text="a", instruction="find it"),
        Item(text="red " * 500),
        Item(text="red " * 500, images=(large, tall)),
    ]


@pytest.fixture(scope="session")
def seen(shapes):
    return [Item(images=(shapes[name],)) for name in ("plain", "wide", "large")]


def frozen(model):
    """With everything frozen that features depend on."""
    names = [name for name, _ in model.module.named_parameters()]
    return model.freeze([part for part in EYE if part == "vision" or any(part in name for name in names)])


def distance(ours, theirs):
    """The largest cosine distance."""
    return float((1 - (ours.astype(np.float64) * theirs).sum(axis=1)).max())


def examples(pictures, count=4):
    chosen = list(pictures.items())[:count]
    return [Example(Item(text=caption), (Candidate(Item(images=(path,)), 1.0, "gold"),)) for caption, path in chosen]


def gradients(model):
    made = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
    model.module.zero_grad(set_to_none=True)
    return made


class TestNoDifference:
    def test_to_inputs_and_vectors(self, folder, load, mixed):
        plain, kept = load(folder, cache=False), load(folder)
        for side in ("left", "right"):
            for model in (plain, kept):
                model.body.tokenizer.padding_side = side
                model.module.eval()
            with torch.no_grad():
                ours, theirs = (model.body.features([[item] for item in mixed]) for model in (kept, plain))
            assert "pixel_values" in theirs
            assert "pixel_values" not in ours
            for name in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw", "num_images_per_sample"):
                assert (name in ours) == (name in theirs)
                assert name not in ours or torch.equal(ours[name], theirs[name]), name
            truth = plain.encode(mixed)
            with torch.no_grad():
                assert distance(kept.forward(mixed).numpy(), truth) < 1e-6
            assert distance(kept.encode(mixed), truth) < 1e-6
        alone = np.concatenate([kept.encode([item]) for item in mixed])
        assert distance(alone, truth) < 1e-6

    def test_to_the_gradient(self, folder, load, pictures, shapes, looks):
        texts = Example(Item(text="a"), (Candidate(Item(text="b"), 1.0, "gold"),))
        batch = shared([*examples(pictures), *examples(shapes)[2:], texts], 0)
        made = []
        for cache in (True, False):
            model = frozen(load(folder, cache))
            model.body.settle_vision()
            assert (model.body.vision is not None) == cache
            model.body.train()
            for _ in range(2):
                embedder_step(model, LOSS, batch, Memory(100, 0))
                made.append(gradients(model))
        assert len(looks) == len(set(looks)) == 6
        assert made[0].keys() == made[2].keys()
        for name, truth in made[2].items():
            assert "language_model" in name
            assert all((ours[name] - truth).norm() <= 1e-5 * truth.norm() + 1e-9 for ours in made[:2]), name

    @pytest.mark.filterwarnings("ignore:query and candidate come to more than")
    def test_to_pairs(self, folder, load, shapes):
        plain = load(folder, cache=False)
        kept = Reranker.start_from(load(folder), seed=1)
        assert kept.body.vision is not None
        scorers = kept, Reranker.start_from(plain, seed=1)
        text, long, wide = Item(text="a red square"), Item(text="red " * 300), Item(images=(shapes["wide"],))
        both = Item(images=(shapes["tall"], shapes["plain"]), text="a " * 300)
        pairs = [(text, wide), (wide, text), (wide, long), (text, both), (wide, both), (text, long), (wide, wide)]
        ours, theirs = (scorer.score_pairs(pairs) for scorer in scorers)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        assert len(np.unique(theirs.round(4))) == len(pairs)
        ours, theirs = (scorer.score_pairs([(long, wide)]) for scorer in scorers)  # the text is cut, the picture stays whole
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)

    def test_to_a_text_that_looks_like_a_placeholder(self, folder, load, shapes):
        plain, kept = load(folder, cache=False), load(folder)
        token = plain.body.model[0].processor.image_token
        items = [Item(text=f"{token} a {token}", images=(shapes["wide"],)), Item(text=token)]
        assert distance(kept.encode(items), plain.encode(items)) < 1e-6

    def test_to_who_computes_in_lower_precision(self, qwen, load, seen):
        """Features are those of the weights' own precision, whoever asks for them first."""
        kept = load(qwen)
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            kept.forward(seen)
        assert distance(kept.encode(seen), load(qwen, cache=False).encode(seen)) < 1e-6


class TestOnce:
    def test_each_picture_is_looked_at_once(self, folder, load, mixed, looks, monkeypatch):
        kept = load(folder)
        calls = []
        inner = kept.body.transformer.get_image_features
        monkeypatch.setattr(kept.body.transformer, "get_image_features", lambda *a, **k: (calls.append(1), inner(*a, **k))[1])
        first = kept.encode(mixed, progress="reading")
        # OneVision looks again, not in tiles, at those that are also shown together with others.
        together = 5 if "onevision" in folder.name else 0
        assert set(looks) == {picture for item in mixed for picture in item.images}
        assert len(looks) == 5 + together
        assert len(calls) == 1 + bool(together)  # few pictures: one batch of each kind
        kept.encode(mixed[::-1])
        with kept.evaluating(), torch.no_grad():
            kept.forward(mixed[:4])
        copy = mixed[1].images[0].read_bytes()  # found by content, not by name
        np.testing.assert_allclose(kept.encode([Item(images=(copy,))])[0], first[1], atol=1e-6)
        assert (len(looks), len(calls)) == (5 + together, 1 + bool(together))

    def test_the_next_run_reads_from_disk(self, folder, load, mixed, looks):
        first = load(folder).encode(mixed)
        looks.clear()
        again = load(folder)
        assert distance(again.encode(mixed), first) < 1e-6
        assert looks == []

    def test_another_language_model_shares_the_folder(self, either, load, seen, looks, tmp_path):
        load(either).encode(seen)
        changed = load(either, cache=False)
        with torch.no_grad():
            changed.body.transformer.get_input_embeddings().weight *= 1.5
        changed.save(tmp_path / "changed")
        looks.clear()
        assert distance(load(tmp_path / "changed").encode(seen), changed.encode(seen)) < 1e-6
        assert looks == []

    def test_in_batches_that_fit(self, qwen, load, pictures, shapes, monkeypatch):
        calls = []
        whole = eyes.ChatEye.look
        monkeypatch.setattr(eyes.ChatEye, "look", lambda eye, views: (calls.append(len(views)), whole(eye, views))[1])
        items = [Item(images=(path,)) for path in pictures.values()]
        monkeypatch.setattr("hardwon.models.outputs.ENCODE_TOKENS", 60)  # two items at a time
        kept = load(qwen)
        vectors = kept.encode(items)
        assert calls == [16, 4]
        kept.encode([Item(images=(path,)) for path in shapes.values()])  # also when it is not the first time
        assert calls == [16, 4, len(shapes) - 2]
        calls.clear()
        monkeypatch.setattr(eyes, "BATCH_TOKENS", 50)
        monkeypatch.setattr("hardwon.models.vision.FILE_BYTES", 10_000)
        other = Embedder.load(qwen, device="cpu", vision_cache=kept.body.vision.home / "other")
        assert distance(other.encode(items), vectors) < 1e-6
        assert calls == [3] * 6 + [2]
        assert len(list(other.body.vision.store.folder.glob("*.safetensors"))) == 4  # 3 x 16 x 32 numbers and more in each look

    def test_training_looks_before_it_starts(self, qwen, load, pictures, looks, tmp_path, capsys):
        model = frozen(load(qwen))
        train(model, examples(pictures, 8), LOSS, steps=4, settings=Settings(batch_size=4, memory=Memory(100)))
        assert len(looks) == len(set(looks)) == 8
        assert "looking at pictures: 8/8 pictures" in capsys.readouterr().err
        looks.clear()
        train(model, examples(pictures, 8), LOSS, steps=2, settings=Settings(batch_size=4))
        assert looks == []

    def test_other_processes_find_what_the_first_has_made(self, qwen, load, pictures, looks):
        models, counts = [frozen(load(qwen)) for _ in range(2)], []
        for rank, model in enumerate(models):
            usable._prepared(model, examples(pictures), World(rank))
            counts.append(len(looks))
        assert counts == [4, 4]


class TestMisses:
    def vectors(self, model, items, looks):
        """Vectors, and how many pictures had to be looked at."""
        looks.clear()
        return model.encode(items), len(looks)

    def test_changed_weights(self, either, load, seen, looks):
        kept = load(either)
        old, _ = self.vectors(kept, seen, looks)
        part = [p for name, p in kept.body.transformer.named_parameters() if not name.startswith("language_model")][-1]
        with torch.no_grad():
            part.add_(0.5)
        new, count = self.vectors(kept, seen, looks)
        assert count == 3
        assert distance(new, old) > 1e-5
        assert self.vectors(load(either), seen, looks)[1] == 0

    def test_changed_settings_of_the_processor(self, either, load, seen, looks, tmp_path):
        kept, copy = load(either), tmp_path / "copy"
        old, _ = self.vectors(kept, seen, looks)
        pictures = kept.body.model[0].processor.image_processor
        if hasattr(pictures, "merge_size"):
            pictures.size = {"shortest_edge": 4 * 16**2, "longest_edge": 8 * 16**2}  # pixels at most
        else:
            pictures.image_mean = [0.2, 0.4, 0.6]
        new, count = self.vectors(kept, seen, looks)
        assert count == 3
        assert distance(new, old) > 1e-6
        kept.save(copy)
        assert distance(load(copy, cache=False).encode(seen), new) < 1e-6
        again, count = self.vectors(load(copy), seen, looks)
        assert (distance(again, new) < 1e-6, count) == (True, 0)

    def test_changed_pixels_of_the_same_file(self, qwen, load, shapes, looks, tmp_path):
        kept, path = load(qwen), tmp_path / "a.png"
        shutil.copy(shapes["wide"], path)
        old, _ = self.vectors(kept, [Item(images=(path,))], looks)
        shutil.copy(shapes["other"], path)
        new, count = self.vectors(kept, [Item(images=(path,))], looks)
        assert count == 1
        assert distance(new, old) > 1e-6
        assert distance(new, kept.encode([Item(images=(shapes["other"],))])) < 1e-6

    def test_settings_of_the_module_and_kind(self, qwen, load, monkeypatch):
        eye = load(qwen).body.vision.eye
        made = [eye.identity()]
        eye.module.processing_kwargs = {"image": {"do_rescale": False}}
        made.append(eye.identity())
        eye.model.config.vision_config.num_heads = 1  # the same weights, used otherwise
        made.append(eye.identity())
        monkeypatch.setattr(eye.module.processor.image_processor, "__class__", type("Other", (), {"to_dict": lambda _: {}}))
        made.append(eye.identity())
        assert len(set(made)) == 4

    def test_a_truncated_file_is_computed_again(self, either, load, seen, looks):
        kept = load(either)
        old, _ = self.vectors(kept, seen, looks)
        (file,) = kept.body.vision.store.folder.glob("*.safetensors")
        file.unlink()  # what is mapped here stays as it is
        file.write_bytes(b"\x10")
        new, count = self.vectors(load(either), seen, looks)
        assert count == 3
        assert distance(new, old) < 1e-6
        assert self.vectors(load(either), seen, looks)[1] == 0

    def test_onevision_sees_one_picture_otherwise_than_several(self, folders, load, pictures, looks):
        kept, paths = load(folders["llava-onevision"]), list(pictures.values())
        items = [Item(images=(paths[0],)), *(Item(images=pair) for pair in zip(paths[::2], paths[1::2], strict=True))]
        vectors, count = self.vectors(kept, items, looks)
        assert count == 1 + 20
        assert sum(key.endswith("-together") for key in kept.body.vision.rows) == 20  # too many for one text
        assert distance(vectors, load(folders["llava-onevision"], cache=False).encode(items)) < 1e-6


class TestTraining:
    def test_what_is_trained_is_not_kept(self, either, load):
        kept = load(either)
        kept.body.settle_vision()
        assert kept.body.vision is None
        frozen(kept).body.settle_vision()
        assert kept.body.vision is not None
        assert kept.body.vision.store.folder is not None
        learning = [p for name, p in kept.body.transformer.named_parameters() if not name.startswith("language_model")]
        for parameter in (learning[0], learning[-1]):  # of the tower, and of what comes behind it
            parameter.requires_grad_(True)
            kept.body.settle_vision()
            assert kept.body.vision is None
            parameter.requires_grad_(False)
            kept.body.settle_vision()
            assert kept.body.vision is not None

    def test_a_frozen_tower_before_a_projector_that_learns(self, folders, load):
        kept = load(folders["llava"]).freeze(["vision"])
        kept.body.settle_vision()
        assert kept.body.vision is None

    def test_an_adapter_inside_the_tower(self, qwen, load):
        """As peft puts it there: frozen weights, two small matrices that learn, and a factor that is no weight."""
        kept = frozen(load(qwen))
        attention = kept.body.transformer.visual.blocks[0].attn
        before = kept.body.vision.eye.identity()
        attention.qkv.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(32, 2)})
        kept.body.settle_vision()
        assert kept.body.vision is None
        attention.qkv.lora_A.requires_grad_(False)
        kept.body.settle_vision()
        made = {before, kept.body.vision.eye.identity()}
        for factor in (1.0, 2.0):
            attention.qkv.scaling, attention.qkv.active_adapters = {"default": factor}, ["default"]
            attention.qkv.disable_adapters = False
            made.add(kept.body.vision.eye.identity())
        assert len(made) == 4

    def test_a_step_of_ones_own_reaches_the_tower(self, either, load, seen):
        """A loop that never settles anything: kept features have no gradient, so they are not used."""
        made = []
        for cache in (True, False):
            model = load(either, cache)
            model.encode(seen)
            model.body.train()
            model.forward(seen)[:, :5].sum().backward()
            made.append(gradients(model))
        assert any("vis" in name for name in made[0])
        assert made[0].keys() == made[1].keys()
        assert all(torch.allclose(made[0][name], value, rtol=1e-4, atol=1e-6) for name, value in made[1].items())

    def test_a_trained_tower_does_not_find_old_features(self, either, load, pictures, seen, looks, tmp_path):
        model = load(either)
        old = model.encode(seen)
        train(model, examples(pictures), LOSS, steps=2, settings=Settings(batch_size=4, learning_rate=1e-2))
        assert model.body.vision is None
        truth = model.encode(seen)
        assert distance(truth, old) > 1e-4
        model.save(tmp_path / "trained")
        looks.clear()
        assert distance(load(tmp_path / "trained").encode(seen), truth) < 1e-6
        assert len(looks) == 3

    def test_there_is_no_dropout_in_what_is_kept(self, folders, load, seen):
        kept = load(folders["llava"])
        truth = kept.encode(seen)
        tower = kept.body.transformer.vision_tower
        for layer in tower.modules():
            if hasattr(layer, "dropout") and isinstance(layer.dropout, float):
                layer.dropout = 0.9
        frozen(kept).body.train()
        shutil.rmtree(kept.body.vision.home)
        kept.body.vision.store = type(kept.body.vision.store)(kept.body.vision.store.folder)
        with torch.no_grad():
            assert distance(kept.forward(seen).numpy(), truth) < 1e-6
        assert tower.training


def test_nothing_is_kept_without_a_folder_or_of_a_dual_encoder(folders, load, tmp_path):
    model = frozen(load(folders["qwen2-vl"], cache=False))
    model.body.settle_vision()  # in memory, features of a chat model could be too many
    assert model.body.vision is None
    assert load(folders["clip"]).body.vision is None
    assert not (tmp_path / "cache").exists()
