"""The doctor is well with a sound model, and names the right row for every fault that is put into one."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import vlms
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hardwon.errors import ModelError
from hardwon.models import Embedder, body
from hardwon.models import examination as rows
from hardwon.models.doctor import HALF, WHOLE, difference, examine
from hardwon.models.examination import Check
from hardwon.models.probes import encoded, picture_probes, shades

ALONE = {rows.READ, rows.FINITE, rows.ONE, rows.APART}
BATCHES = {rows.TOGETHER, rows.REVERSED, rows.ENCODED}
OTHERS = {rows.PLAIN, rows.PLAIN_TOGETHER, rows.COPY, rows.PLAIN_COPY}


def failed(found):
    return {row.name for row in found.rows if not row.passed}


def row(found, name):
    (one,) = [row for row in found.rows if row.name == name]
    return one


@pytest.fixture
def folder(tiny_text, tmp_path):
    """A copy of the text encoder that a test may damage."""
    return Path(shutil.copytree(tiny_text, tmp_path / "model"))


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_weights(folder, **values):
    """Fill every tensor whose name ends as stated with a number."""
    tensors = load_file(folder / "model.safetensors")
    for ending, value in values.items():
        for name in [name for name in tensors if name.endswith(ending.replace("__", "."))]:
            tensors[name] = torch.full_like(tensors[name], value)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


class TestSound:
    def test_a_text_encoder(self, tiny_text):
        found = examine(tiny_text, device="cpu")
        assert found.passed
        names = [row.name for row in found.rows if row.name != rows.COARSE]
        assert names == [name for name in rows.ORDER if name in ALONE | BATCHES | OTHERS]
        assert all(row.limit == WHOLE for row in found.rows if row.name in BATCHES | OTHERS)
        assert "It reads no pictures: probes with pictures are left out." in found.notes
        # It knows no other letters than ASCII, so a text in another script is a row of unknown words to it.
        assert any("the very same" in note and "Russian" in note for note in found.notes)
        facts = found.facts
        with_weights = Embedder.load(tiny_text, device="cpu").module
        assert facts.parameters == facts.trainable == sum(p.numel() for p in with_weights.parameters())
        assert (facts.parameter_bytes, facts.dtypes) == (4 * facts.parameters, ("float32",))
        assert (facts.dimension, facts.max_length, facts.pooling) == (tiny.WIDTH, tiny.MAX_TOKENS, "mean")
        assert facts.texts_per_s > 0 == facts.pictures_per_s
        assert facts.resident_bytes > 10_000_000
        again = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert again["passed"] is True
        assert [row["name"] for row in again["rows"]] == [row.name for row in found.rows]

    def test_the_built_in_backbone(self, tiny_vlm):
        found = examine(tiny_vlm, device="cpu")
        assert found.passed
        assert row(found, rows.READ).probes == 22
        assert row(found, rows.PLAIN).probes == 18  # without special tokens, URL, path, and a text cut beside a picture
        assert found.facts.pictures_per_s > 0
        assert not any("in the order in which its dict names them" in note for note in found.notes)  # its template sorts them

    def test_weights_of_16_bits_may_differ_more(self, folder):
        Embedder.load(folder, device="cpu").body.model.bfloat16().save(str(folder), create_model_card=False)
        found = examine(folder, device="cpu")
        assert found.passed
        assert {row.limit for row in found.rows if row.name in BATCHES | OTHERS} == {HALF}
        assert row(found, rows.TOGETHER).largest > 1e-9
        assert found.facts.dtypes == ("bfloat16",)

    def test_an_adapter(self, tiny_text, tmp_path):
        peft = pytest.importorskip("peft", reason="adapters need peft")
        model = Embedder.load(tiny_text, device="cpu").body.model
        model.add_adapter(peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False))
        model.save(str(tmp_path), create_model_card=False)
        assert not (tmp_path / "model.safetensors").exists()
        found = examine(tmp_path, device="cpu")
        assert found.passed
        assert any(note.startswith("It is an adapter") for note in found.notes)

    def test_a_model_without_a_way_of_pooling(self, tiny_text):
        found = examine(tiny_text.with_name(tiny_text.name + "-parts"), device="cpu")
        assert found.passed
        assert any("has no modules.json" in note and "how to pool: mean" in note for note in found.notes)
        assert any("gives vectors of length" in note for note in found.notes)  # nothing normalises them there

    def test_a_default_prompt(self, folder):
        change(folder / "config_sentence_transformers.json", prompts={"query": "find: "}, default_prompt_name="query")
        found = examine(folder, device="cpu")
        assert found.passed
        assert (found.facts.prompts["query"], found.facts.default_prompt) == ("find: ", "query")

    def test_what_users_of_the_plain_model_have_to_know(self, tiny_vlm, tmp_path):
        Embedder.load(tiny_vlm, instruction={"text": "find it", "image": "the"}, device="cpu").save(tmp_path / "model")
        change(tmp_path / "model" / "tokenizer_config.json", model_max_length=10**30)
        found = examine(tmp_path / "model", device="cpu")
        assert found.passed
        assert any("prompt_name='text'" in note for note in found.notes)
        assert any("names no maximum length" in note for note in found.notes)
        assert found.facts.max_length == 2 * tiny.MAX_TOKENS  # as many as BERT has positions


class TestFaults:
    def test_padding_that_is_seen(self, folder):
        change(folder / "tokenizer_config.json", model_input_names=["input_ids"])
        found = examine(folder, device="cpu")
        assert failed(found) == {*BATCHES, rows.PLAIN_TOGETHER}
        assert "attention_mask" in row(found, rows.TOGETHER).advice
        assert row(found, rows.TOGETHER).worst == "one letter"

    def test_a_side_that_must_not_be_changed(self, tmp_path):
        """GPT-2 counts its places from the edge: filled up on the left, every word is somewhere else."""
        from transformers import GPT2Config, GPT2Model

        words = vlms.generic_tokenizer(("<pad>",), pad_token="<pad>", padding_side="right")
        words.model_max_length = 1024
        config = GPT2Config(vocab_size=len(words), n_positions=1024, n_embd=vlms.WIDTH, n_layer=2, n_head=2)
        vlms.save(vlms.random_weights(GPT2Model, config), words, tmp_path / "model")
        found = examine(tmp_path / "model", device="cpu")
        assert failed(found) == {rows.FILLED}
        assert found.facts.padding_side == "right"
        assert "Texts were cut at 512 tokens to save time; the model takes 1,024." in found.notes
        assert found.facts.max_length == 1024
        assert Embedder.load(tmp_path / "model", device="cpu").body.tokenizer.padding_side == "right"

    def test_another_pooling_in_what_was_saved(self, tiny_text, monkeypatch):
        def save(self, path, about=None):
            self.body.model.save(str(path), create_model_card=False)
            change(path / "1_Pooling" / "config.json", pooling_mode="cls")

        monkeypatch.setattr(Embedder, "save", save)
        found = examine(tiny_text, device="cpu")
        assert failed(found) == {rows.COPY, rows.PLAIN_COPY}
        assert "modules.json" in row(found, rows.COPY).advice

    def test_another_length_in_what_was_saved(self, tiny_text, monkeypatch):
        def save(self, path, about=None):
            self.body.model.save(str(path), create_model_card=False)
            change(path / "tokenizer_config.json", model_max_length=32)

        monkeypatch.setattr(Embedder, "save", save)
        found = examine(tiny_text, device="cpu")
        assert failed(found) == {rows.COPY, rows.PLAIN_COPY}
        assert "its maximum length is 32, that of the original is 64" in row(found, rows.PLAIN_COPY).remark

    def test_nothing_saved(self, tiny_text, monkeypatch):
        def save(self, path, about=None):
            self.body.model.save(str(path), create_model_card=False)
            (path / "model.safetensors").unlink()

        monkeypatch.setattr(Embedder, "save", save)
        found = examine(tiny_text, device="cpu")
        assert failed(found) == {rows.COPY, rows.PLAIN_COPY}
        assert row(found, rows.COPY).largest == math.inf
        assert "cannot be loaded" in row(found, rows.COPY).remark
        assert [r["largest"] for r in found.to_json()["rows"] if r["name"] == rows.COPY] == [None]

    def test_other_words_than_sentence_transformers_shows(self, tiny_text, monkeypatch):
        made = body.payload
        monkeypatch.setattr(body, "payload", lambda *given: {"text": "a " + made(*given)["text"]})
        found = examine(tiny_text, device="cpu")
        assert failed(found) == {rows.PLAIN, rows.PLAIN_TOGETHER, rows.PLAIN_COPY}
        assert next(row.name for row in found.rows if not row.passed) == rows.PLAIN  # the cause comes first
        assert "default_prompt_name" in row(found, rows.PLAIN).advice

    def test_one_vector_for_everything(self, folder):
        change_weights(folder, output__LayerNorm__weight=0.0, output__LayerNorm__bias=1.0)
        found = examine(folder, device="cpu")
        assert failed(found) == {rows.APART}
        assert row(found, rows.APART).largest == pytest.approx(1)

    def test_no_vector_at_all(self, folder):
        change_weights(folder, output__LayerNorm__weight=0.0, output__LayerNorm__bias=0.0)
        assert {rows.ONE, rows.PLAIN} <= failed(examine(folder, device="cpu"))

    def test_vectors_that_are_not_finite(self, folder):
        change_weights(folder, output__LayerNorm__weight=math.nan)
        found = examine(folder, device="cpu")
        assert next(row.name for row in found.rows if not row.passed) == rows.FINITE
        assert row(found, rows.FINITE).largest == row(found, rows.FINITE).probes
        assert "not finite" in row(found, rows.ENCODED).remark
        json.dumps(found.to_json(), allow_nan=False)

    def test_a_processor_that_does_not_fit(self, tmp_path):
        found = examine(vlms.build_llava(tmp_path / "model", patch=16), device="cpu")
        assert failed(found) == {rows.READ}
        assert "tokens do not match" in row(found, rows.READ).remark
        assert row(found, rows.READ).worst == "a square"

    def test_no_model(self, folder):
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError, match="cannot be loaded"):
            examine(folder, device="cpu")

    def test_a_model_that_reads_nothing(self, folder):
        change(folder / "tokenizer_config.json", pad_token=None)
        with pytest.raises(
            ModelError, match=r"reads none of the probes; the first is 'one letter': ModelError: .*Asking to pad"
        ):
            examine(folder, device="cpu")


class TestDifference:
    @given(st.integers(0, 2**32 - 1))
    def test_is_one_minus_the_cosine(self, seed):
        one, other = np.random.default_rng(seed).integers(-2, 3, (2, 8, 3)).astype(np.float32)  # some are zero, some equal
        made = difference(one, other)
        for left, right, value in zip(one.astype(float), other.astype(float), made, strict=True):
            size = np.linalg.norm(left) * np.linalg.norm(right)
            assert value == (pytest.approx(1 - left @ right / size, abs=1e-12) if size else math.inf)

    def test_is_exact_where_the_cosine_is_not(self):
        angle = 1e-9  # 1 - cos is 5e-19, which 1 - x cannot show
        assert difference(np.array([[1.0, 0.0]]), np.array([[1.0, angle]])) == pytest.approx([5e-19])

    def test_vectors_of_another_width(self):
        with pytest.raises(ModelError, match=r"shape \(1, 3\) instead of \(1, 2\)"):
            difference(np.ones((1, 2)), np.ones((1, 3)))


def test_a_number_that_is_none_does_not_pass():
    assert not Check("x", 1, math.nan, limit=1.0).passed
    assert not Check("x", 1, math.inf, limit=1.0).passed
    assert Check("x", 1, math.inf).passed  # information


def test_every_check_says_what_to_do():
    assert all(Check(name, 1, 0.0).advice for name in rows.ORDER if name != rows.COARSE)


def test_pictures_stay_different_when_scaled_to_a_square():
    pictures = [probe.item.images[0] for probe in picture_probes()]
    from hardwon.pictures import open_picture

    pixels = [np.asarray(open_picture(picture).resize((32, 32))).astype(float) for picture in pictures]
    apart = [np.abs(one - other).mean() for n, one in enumerate(pixels) for other in pixels[:n]]
    assert min(apart) > 10
    assert encoded(shades(5, 7)) == encoded(shades(5, 7))
