"""Real architectures with tiny random weights: through hardwon, sentence-transformers and transformers alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import vlms
from safetensors.torch import load_file, save_file

from hardwon.errors import ModelError
from hardwon.items import Candidate, Example, Item
from hardwon.losses import InfoNCE
from hardwon.models import Embedder
from hardwon.models.doctor import examine
from hardwon.models.examination import FILLED, READ
from hardwon.pictures import open_picture
from hardwon.training.batches import shared
from hardwon.training.step import Memory, embedder_step

LOSS = InfoNCE(0.1)
SEE_VIDEO = [name for name in vlms.DECODERS if name != "llava"]


@pytest.fixture
def fresh(decoder):
    """An embedder that a test may change."""
    return Embedder.load(decoder.folder, device="cpu")


TEXTS = [
    Item(text="a red square"),
    Item(text="the fox is above the yellow bar " * 3),
    Item(text="a bar", instruction="find it"),
]


@pytest.fixture(scope="session")
def seen(shapes):
    """One picture each."""
    return [Item(images=(shapes[name],)) for name in ("plain", "other", "wide", "tall", "large")]


@pytest.fixture(scope="session")
def mixed(shapes, seen):
    """Items of every kind, of very different lengths."""
    plain, other, wide = (shapes[name] for name in ("plain", "other", "wide"))
    return [
        *TEXTS,
        *seen,
        Item(images=(other,), text="what is it"),
        Item(images=(wide,), instruction="represent the given image"),
        Item(images=(plain, other)),
        Item(images=(other, wide, plain), text="a", instruction="find it"),
    ]


def plainly(item):
    """An item as a user of sentence-transformers writes it."""
    pictures = [open_picture(picture) for picture in item.images]
    words = " ".join(part for part in (item.instruction, item.text) if part)
    return ({"image": pictures if len(pictures) > 1 else pictures[0]} if pictures else {}) | ({"text": words} if words else {})


def apart(vectors):
    """The smallest distance between two of the vectors: they could not have been swapped unnoticed."""
    return float((np.linalg.norm(vectors[:, None] - vectors[None], axis=-1) + 9 * np.eye(len(vectors))).min())


def examples(pictures, count=4):
    chosen = list(pictures.items())[:count]
    return [Example(Item(text=caption), (Candidate(Item(images=(path,)), 1.0, "gold"),)) for caption, path in chosen]


class TestAny:
    def test_what_it_reads(self, any_model):
        assert {"text", "image"} <= set(any_model.ours.body.modalities)
        assert any_model.ours.dim == vlms.WIDTH

    def test_vectors_are_those_of_sentence_transformers(self, any_model, mixed, seen):
        groups = (TEXTS, seen) if any_model.name in vlms.DUAL else (mixed,)
        for items in groups:
            made = np.concatenate([any_model.ours.encode([item]) for item in items])
            np.testing.assert_allclose(made, any_model.theirs.encode([plainly(i) for i in items], batch_size=1), atol=1e-6)
            np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
            assert apart(made) > 3e-3

    def test_a_saved_copy_is_a_plain_model_with_the_same_vectors(self, any_model, seen, tmp_path):
        from sentence_transformers import SentenceTransformer

        any_model.ours.save(tmp_path)
        again = SentenceTransformer(str(tmp_path), device="cpu")
        for items in (TEXTS[:1], seen[2:3]):
            np.testing.assert_allclose(again.encode([plainly(i) for i in items]), any_model.ours.encode(items), atol=1e-6)
        assert Embedder.load(tmp_path, device="cpu").fingerprint == any_model.ours.fingerprint

    def test_a_batch_of_pictures_is_as_good_as_one(self, any_model, seen):
        alone = np.concatenate([any_model.ours.encode([item]) for item in seen])
        np.testing.assert_allclose(any_model.ours.encode(seen), alone, atol=1e-5)

    def test_the_doctor_finds_nothing(self, any_model):
        found = examine(any_model.folder, device="cpu")
        assert [row for row in found.rows if not row.passed] == []
        read = {row.name: row.probes for row in found.rows}
        # A side 3,000 times as long as the other.
        refused = any_model.name.startswith(("qwen", "clip")) or any_model.name == "llava"
        assert any("1 x 3000" in note and "aspect ratio" in note for note in found.notes) == refused
        sees_video = "video" in any_model.ours.body.modalities
        assert read[READ] == (18 if any_model.name in vlms.DUAL else 22) + 2 * sees_video - refused
        assert (FILLED in read) == (any_model.name not in vlms.DUAL)
        # What a plain user has to be told.
        told = [note for note in found.notes if "hardwon loads it with" in note]
        siglip, samples = any_model.name == "siglip", any_model.name == "qwen3-vl" and sees_video
        assert len(told) == (siglip or samples)
        assert all("off by up to 0." in note for note in told)
        assert any("'padding': 'max_length'" in note and "depend on what shares" in note for note in told) == siglip
        assert any("'do_sample_frames': False" in note for note in told) == samples
        assert any("names pictures first" in note for note in found.notes) == (any_model.name not in vlms.DUAL)

    def test_pictures_of_one_pixel(self, any_model, shapes):
        assert np.isfinite(any_model.ours.encode([Item(images=(shapes[name],)) for name in ("dot", "line")])).all()

    def test_text_beyond_the_longest_is_cut(self, any_model):
        body = any_model.ours.body
        (ids,) = body.features([[Item(text="red " * 5000)]])["input_ids"].tolist()
        assert len(ids) == body.model.max_seq_length
        (short,) = body.features([[Item(text="red")]])["input_ids"].tolist()
        if any_model.name != "siglip":  # the end that the vector is read from is still there
            assert ids[-1] == short[-1] if any_model.name in vlms.DUAL else ids[-2:] == short[-2:]

    def test_special_tokens_in_text_are_text(self, any_model, shapes):
        body = any_model.ours.body
        picture = () if any_model.name in vlms.DUAL else (shapes["plain"],)
        control = set(body.tokenizer.added_tokens_decoder)

        def controls(text):
            (ids,) = body.features([[Item(text=text, images=picture)]])["input_ids"].tolist()
            return [n for n in ids if n in control and n != body.tokenizer.pad_token_id]

        added = {token.content for token in body.tokenizer.added_tokens_decoder.values()}
        for token in added | set(body.tokenizer.all_special_tokens):
            assert controls(f"x {token} y{token}") == controls("x y"), token


class TestDecoder:
    def test_pools_what_the_language_head_reads_last(self, decoder, mixed):
        """The truth: the generating model of the hub, by transformers alone, one item at a time and nothing padded."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = AutoModelForImageTextToText.from_pretrained(vlms.bare(decoder.folder)).eval()
        processor = AutoProcessor.from_pretrained(vlms.bare(decoder.folder))
        truth = []
        for item in mixed:
            parts = plainly(item)
            pictures = parts.get("image", [])
            content = [{"type": "image", "image": p} for p in (pictures if isinstance(pictures, list) else [pictures])]
            content += [{"type": "text", "text": parts["text"]}] if "text" in parts else []
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
            )
            with torch.no_grad():
                made = model(**inputs, output_hidden_states=True)
                last = made.hidden_states[-1][0, -1]
                torch.testing.assert_close(model.lm_head(last), made.logits[0, -1])  # after the final norm
            truth.append(torch.nn.functional.normalize(last, dim=0).numpy())
        np.testing.assert_allclose(decoder.ours.encode(mixed), np.stack(truth), atol=1e-5)

    def test_long_text_beside_a_picture_keeps_the_end_of_the_template(self, decoder, shapes):
        body = decoder.ours.body
        ends = []
        for text in ("red", "red " * 5000):
            (ids,) = body.features([[Item(text=text, images=(shapes["plain"],))]])["input_ids"].tolist()
            assert len(ids) <= body.model.max_seq_length
            ends.append(body.tokenizer.decode(ids[-2:]))
        assert ends[0] == ends[1]

    def test_the_cost_of_an_item_is_its_tokens(self, decoder, mixed):
        for item in mixed:
            (ids,) = decoder.ours.body.features([[item]])["input_ids"].tolist()
            assert len(ids) / 2 <= decoder.ours.cost(item) <= 2 * len(ids) + 8, item

    def test_more_pictures_than_fit_are_an_error_that_names_the_item(self, decoder, shapes):
        model = Embedder.load(decoder.folder, device="cpu")
        model.body.model.max_seq_length = 24
        item = Item(text="what", images=(shapes["plain"],) * 3)
        with pytest.raises(ModelError, match=f"item {item.key[:12]} comes to .* tokens of pictures, but the model takes 24"):
            model.encode([TEXTS[0], item])

    def test_a_mixed_batch_is_as_good_as_one(self, decoder, mixed):
        alone = np.concatenate([decoder.ours.encode([item]) for item in mixed])
        np.testing.assert_allclose(decoder.ours.forward(mixed).detach().numpy(), alone, atol=1e-5)
        np.testing.assert_allclose(decoder.ours.encode(mixed[::-1]), alone[::-1], atol=1e-5)
        np.testing.assert_allclose(decoder.theirs.encode([plainly(item) for item in mixed]), alone, atol=1e-5)

    def test_the_side_of_the_padding_does_not_matter(self, fresh, mixed):
        left = fresh.encode(mixed)
        fresh.body.tokenizer.padding_side = "right"
        first, last = fresh.body.features([[item] for item in mixed])["attention_mask"][:, [0, -1]].T
        assert first.all()
        assert not last.all()
        np.testing.assert_allclose(fresh.encode(mixed), left, atol=1e-5)

    def test_a_bare_folder_is_averaged(self, decoder):
        from sentence_transformers import SentenceTransformer

        _, pooling = SentenceTransformer(str(vlms.bare(decoder.folder)), device="cpu")
        assert pooling.pooling_mode == "mean"  # so the pooling of a decoder always has to be said
        assert decoder.theirs[1].pooling_mode == "lasttoken"

    def test_picture_tokens(self, decoder, shapes):
        token = decoder.theirs[0].processor.image_token_id
        counted = []
        for name in ("plain", "wide", "dot"):
            ids = decoder.ours.body.features([[Item(images=(shapes[name],))]])["input_ids"]
            counted.append(int((ids == token).sum()))
        # LLaVA: always 4 x 4. OneVision: those, and the tiles' without their margins, with a line end for each row.
        truth = {"llava": [16, 16, 16], "llava-onevision": [16 + 8 * 9, 16 + 2 * 9, 16 + 4 * 5]}
        assert counted == truth.get(decoder.name.split(" ")[0], [16, 2 * 8, 4])

    def test_picture_tokens_are_known_beforehand(self, decoder, shapes):
        token = decoder.theirs[0].processor.image_token_id
        for names in (("plain",), ("large",), ("plain", "other"), ("wide", "dot", "tall")):
            item = Item(images=tuple(shapes[name] for name in names))
            assert decoder.ours.body.picture_tokens.of(item.images) == decoder.ours.body.features([[item]])[
                "input_ids"
            ].tolist()[0].count(token)

    def test_features_of_the_tower_can_be_put_in_later(self, decoder, mixed):
        """What a cache of vision features rests on: the same vectors from features computed before."""
        inner, whole = decoder.theirs[0].model, decoder.ours.body.features([[item] for item in mixed])
        features = {name: value for name, value in whole.items() if name != "pixel_values"}
        where = {name: whole[name] for name in ("image_grid_thw", "image_sizes", "batch_num_images") if name in whole}
        with torch.no_grad():
            made = inner.get_image_features(whole["pixel_values"], **where, return_dict=True)
            vectors = decoder.theirs(features | {"mm_encoder_outputs": {"image": made}})["sentence_embedding"]
        assert len(made.pooler_output) == sum(len(item.images) for item in mixed)
        np.testing.assert_allclose(vectors.numpy(), decoder.ours.encode(mixed), atol=1e-5)

    @pytest.mark.parametrize("memory", [Memory(100_000), Memory(100), Memory(100, 0)], ids=repr)
    def test_gradient(self, fresh, pictures, memory):
        batch = shared(examples(pictures), 0)
        sides = [torch.cat([fresh.forward([item]) for item in side]) for side in (batch.queries, batch.candidates)]
        LOSS(sides[0] @ sides[1].T, batch.targets[:]).backward()
        truth = tiny.gradient_of(fresh)
        embedder_step(fresh, LOSS, batch, memory)
        assert all(p.grad is not None for name, p in fresh.module.named_parameters() if "language_model" in name)
        assert any(p.grad is not None for name, p in fresh.module.named_parameters() if "vis" in name)
        assert tiny.relative(tiny.gradient_of(fresh), truth) < 2e-5

    def test_a_frozen_tower_gets_no_gradient(self, fresh, pictures):
        fresh.freeze(["vision", "words"])
        embedder_step(fresh, LOSS, shared(examples(pictures), 0), Memory())
        learned = {name.split(".")[2] for name, p in fresh.module.named_parameters() if p.grad is not None}
        assert "language_model" in learned
        assert not learned & {"visual", "vision_tower"}

    @pytest.mark.parametrize("name", SEE_VIDEO)
    def test_video(self, name, models, pictures):
        model = models[name].theirs
        frames = [open_picture(path) for path in list(pictures.values())[:4]]
        items = [{"video": frames, "text": "what"}, {"text": "a red square"}, {"image": frames[0]}, {"video": frames[::-1]}]
        alone = np.concatenate([model.encode([item]) for item in items])
        assert apart(alone) > 1e-3
        np.testing.assert_allclose(model.encode(items), alone, atol=1e-5)


def test_the_doctor_says_how_a_bare_decoder_is_pooled(models):
    found = examine(vlms.bare(models["qwen3-vl"].folder), device="cpu")
    assert found.passed
    assert any("with pooling 'lasttoken' instead of 'mean'" in note and "off by up to 0." in note for note in found.notes)
    assert any("guess how to pool: lasttoken" in note for note in found.notes)


class TestDual:
    def test_text_and_picture_in_one_item_is_an_error(self, dual, shapes):
        item = Item(text="a", images=(shapes["plain"],))
        with pytest.raises(ModelError, match=f"item {item.key[:12]} holds a picture with a text or an instruction"):
            dual.ours.encode([item])

    def test_several_pictures_in_one_item_are_an_error(self, dual, shapes):
        with pytest.raises(ModelError, match="holds several pictures"):
            dual.ours.encode([Item(images=(shapes["plain"], shapes["wide"]))])

    def test_texts_and_pictures_in_one_batch(self, dual, seen):
        items = [TEXTS[0], seen[0], seen[1], TEXTS[1], seen[2]]
        alone = np.concatenate([dual.ours.encode([item]) for item in items])
        np.testing.assert_allclose(dual.ours.encode(items), alone, atol=1e-5)
        np.testing.assert_allclose(dual.ours.forward(items).detach().numpy(), alone, atol=1e-5)

    def test_words_can_be_frozen(self, dual):
        model = Embedder.load(dual.folder, device="cpu").freeze(["words"])
        frozen = [name for name, p in model.module.named_parameters() if not p.requires_grad]
        assert frozen
        assert all("token_embedding" in name for name in frozen)

    @pytest.mark.parametrize("memory", [Memory(100_000), Memory(1), Memory(100, 0)], ids=repr)
    def test_gradient(self, dual, pictures, memory):
        model = Embedder.load(dual.folder, device="cpu")
        batch = shared(examples(pictures), 0)
        texts = torch.cat([model.forward([query]) for query in batch.queries])
        LOSS(texts @ model.forward(batch.candidates).T, batch.targets[:]).backward()
        truth = tiny.gradient_of(model)
        embedder_step(model, LOSS, batch, memory)
        unused = {name for name, p in model.module.named_parameters() if p.grad is None}
        assert unused <= {"0.model.logit_scale", "0.model.logit_bias"}
        assert tiny.relative(tiny.gradient_of(model), truth) < 2e-5


def test_clip_reads_texts_of_different_lengths_together(models):
    model = models["clip"].ours
    np.testing.assert_allclose(model.encode(TEXTS), np.concatenate([model.encode([item]) for item in TEXTS]), atol=1e-5)


def test_siglip_does_not_depend_on_its_neighbours(models):
    """It reads the last place of a text and was trained on texts that are filled up to the full length."""
    model = models["siglip"].ours
    np.testing.assert_allclose(model.encode(TEXTS), np.concatenate([model.encode([item]) for item in TEXTS]), atol=1e-5)


def test_a_processor_that_counts_patches_wrongly_is_an_error(shapes, tmp_path):
    model = Embedder.load(vlms.build_llava(tmp_path / "model", patch=16), device="cpu")
    with pytest.raises(ModelError, match=r"cannot read item .*tokens do not match, tokens: 4, features: 512"):
        model.encode([Item(images=(shapes["plain"],))])
    assert np.isfinite(model.encode(TEXTS)).all()


class TestLoading:
    @pytest.fixture
    def folder(self, any_model, tmp_path):
        """A copy that a test may damage."""
        return Path(shutil.copytree(any_model.folder, tmp_path / "model"))

    def weights(self, folder):
        (file,) = folder.rglob("model.safetensors")
        return file

    def test_missing_weights_are_an_error(self, folder):
        file = self.weights(folder)
        tensors = load_file(file)
        name = sorted(name for name in tensors if "bias" not in name and "layers.0" in name)[0]
        del tensors[name]
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(ModelError, match=r"lacks 1 of \d+ weights .* random numbers"):
            Embedder.load(folder, device="cpu")

    def test_weights_of_another_shape_are_an_error(self, folder):
        file = self.weights(folder)
        tensors = load_file(file)
        name = sorted(name for name in tensors if "layers.0" in name and tensors[name].dim() == 2)[0]
        tensors[name] = torch.cat([tensors[name], tensors[name]])
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(ModelError, match="cannot be loaded"):
            Embedder.load(folder, device="cpu")

    def test_a_length_without_end_is_that_of_the_language_model(self, decoder, tmp_path):
        folder = Path(shutil.copytree(decoder.folder, tmp_path / "model"))
        for file in folder.rglob("tokenizer_config.json"):
            file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 10**30}))
        for file in folder.rglob("sentence_bert_config.json"):
            file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "max_seq_length"}))
        model = Embedder.load(folder, device="cpu").body
        assert model.model.max_seq_length == model.transformer.config.get_text_config().max_position_embeddings

    def test_half_a_character_is_no_error(self, any_model):
        assert np.isfinite(any_model.ours.encode([Item(text="a \ud83d b")])).all()

    def test_the_kind_of_processor_counts_in_the_fingerprint(self, any_model):
        ours = any_model.ours
        assert type(ours.body.model[0].processor.image_processor).__name__ in ours.body.identity()


@pytest.mark.parametrize("name", SEE_VIDEO)
def test_the_processor_without_video_sees_the_same(models, name, seen, tmp_path):
    blind = Embedder.load(vlms.DECODERS[name](tmp_path / name, video=False), device="cpu")
    items = [*TEXTS, *seen, Item(text="what", images=seen[2].images)]
    ours, theirs = (model.body.features([[item] for item in items]) for model in (blind, models[name].ours))
    tokens = [model.body.tokenizer.convert_ids_to_tokens for model in (blind, models[name].ours)]  # numbered differently
    for mine, other in zip(ours["input_ids"].tolist(), theirs["input_ids"].tolist(), strict=True):
        assert tokens[0](mine) == tokens[1](other)
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])


BROKEN = """
import sys
sys.path.insert(0, sys.argv[1])
if len(sys.argv) > 2:
    from hardwon.models.torchvision_guard import declare_missing_operators
    import torch
    assert hasattr(torch.ops.torchvision, "nms") and hasattr(torch.ops.torchvision, "qnms")
    assert declare_missing_operators() == ()
import torchvision
"""


class TestTorchvisionGuard:
    """A torchvision whose library cannot be loaded, made here: what matters of the real one is how it is imported."""

    @pytest.fixture
    def run(self, tmp_path):
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "_C.so").write_bytes(b"compiled against something else")
        lines = ["import torch", *(f"torch.library.register_fake('torchvision::{name}')(abs)" for name in ("nms", "qnms"))]
        (tmp_path / "torchvision" / "__init__.py").write_text("\n".join(lines))
        return lambda *more: subprocess.run(
            [sys.executable, "-c", BROKEN, str(tmp_path), *more], capture_output=True, text=True, timeout=120, check=False
        )

    def test_makes_it_importable(self, run):
        done = run("guarded")
        assert done.returncode == 0, done.stderr[-2000:]

    def test_without_it_the_import_fails(self, run):
        assert "operator torchvision::nms does not exist" in run().stderr

    def test_nothing_happens_without_torchvision(self, monkeypatch):
        from hardwon.models.torchvision_guard import declare_missing_operators

        declared = []
        monkeypatch.delitem(sys.modules, "torchvision", raising=False)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        monkeypatch.setattr(torch.library, "define", lambda *args: declared.append(args))
        assert declare_missing_operators() == ()
        assert declared == []
