import shutil

import pytest
import torch
import vlms
from hypothesis import given
from hypothesis import strategies as st

from hardwon.errors import ModelError
from hardwon.items import Item
from hardwon.models import Embedder, Reranker
from hardwon.models.body import trainable
from hardwon.models.memory import CALL, ENOUGH, plan


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_a_plan_holds_everything_once_within_the_budget(costs, budget):
    chunks = plan(costs, budget)
    assert sorted(n for chunk in chunks for n in chunk) == list(range(len(costs)))
    for chunk in chunks:
        assert len(chunk) == 1 or len(chunk) * max(costs[n] for n in chunk) <= budget
    flat = [costs[n] for chunk in chunks for n in chunk]
    assert flat == sorted(flat, reverse=True)


def test_equal_costs_stay_in_order():
    assert plan([5, 5, 5, 5, 5], 10) == [[0, 1], [2, 3], [4]]
    assert plan([], 10) == []


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(300, 2000), st.sampled_from([0.0, 0.15, 0.5, 1.0]))
def test_little_padding_once_a_chunk_is_large_enough(costs, budget, waste):
    chunks = plan(costs, budget, waste)
    assert sorted(n for chunk in chunks for n in chunk) == list(range(len(costs)))
    left = len(costs)
    for chunk in chunks:
        longest = costs[chunk[0]]
        assert len(chunk) * longest <= budget
        for place, n in enumerate(chunk):
            saved = min(left, (budget - place * longest) // longest) * (longest - costs[n])
            assert place * longest < ENOUGH or costs[n] >= (1 - waste) * longest or saved <= CALL
            left -= 1


def test_padding_starts_a_new_chunk():
    assert plan([100, 100, 100, 90, 50, 50], 1000, 0.15) == [[0, 1, 2, 3], [4, 5]]
    assert plan([100, 50, 50], 1000, 0.15) == [[0, 1, 2]]  # too little to be worth another pass
    texts = [20] * 13 + [16] * 3
    assert plan(texts, 2048, 0.15) == [list(range(16))]  # so are 12 tokens
    assert [len(chunk) for chunk in plan(texts * 8, 4096, 0.15)] == [104, 24]


class TestLoad:
    @pytest.mark.parametrize("kind", [Embedder, Reranker])
    def test_a_folder_without_a_model(self, kind, tmp_path):
        (tmp_path / "notes.txt").write_text("nothing here")
        with pytest.raises(ModelError, match=r"holds no model: it has neither modules\.json nor config\.json"):
            kind.load(tmp_path)

    def test_a_configuration_of_something_else(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "no such architecture"}')
        with pytest.raises(ModelError, match="cannot be loaded as a SentenceTransformer"):
            Embedder.load(tmp_path)

    def test_weights_cut_short(self, tiny_text, tmp_path):
        shutil.copytree(tiny_text, tmp_path / "model")
        weights = tmp_path / "model" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(ModelError, match="cannot be loaded as a SentenceTransformer"):
            Embedder.load(tmp_path / "model")

    def test_without_a_longest_text(self, tmp_path):
        import tiny
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding

        words = StaticEmbedding(tiny.tokenizer()._tokenizer, embedding_dim=4)
        SentenceTransformer(modules=[words], device="cpu").save(str(tmp_path), create_model_card=False)
        with pytest.raises(ModelError, match="no finite maximum length: set `model_max_length`"):
            Embedder.load(tmp_path)


class TestFreeze:
    def named(self, model):
        return {name for name, p in model.module.named_parameters() if not p.requires_grad}

    def test_vision(self, vlm):
        assert vlm.freeze(["vision"]) is vlm
        assert self.named(vlm) == {name for name, _ in vlm.module.named_parameters() if ".vision_tower." in name}

    def test_words(self, vlm, text_model):
        for model in (vlm, text_model):
            model.freeze(("words",))
            (name,) = self.named(model)
            assert name.endswith("word_embeddings.weight")

    def test_the_start_of_a_name(self, text_model):
        text_model.freeze(["encoder.layer.0."])
        frozen = self.named(text_model)
        assert frozen
        assert all(".encoder.layer.0." in name for name in frozen)
        assert len(trainable(text_model.module)) == len(list(text_model.module.parameters())) - len(frozen)

    @pytest.mark.parametrize("part", ["vision", "decoder", "encoder.layer.7"])
    def test_an_unknown_part(self, text_model, part):
        with pytest.raises(ModelError, match=f"no parameter belongs to '{part}'. Parts: vision, words, or the start of 0"):
            text_model.freeze([part])


class TestModes:
    def test_evaluating_restores_the_mode(self, text_model):
        text_model.body.train()
        with text_model.evaluating():
            assert not any(part.training for part in text_model.module.modules())
        assert text_model.module.training

    def test_evaluating_restores_it_after_an_error(self, text_model):
        text_model.body.train()
        with pytest.raises(RuntimeError, match="stop"), text_model.evaluating():
            raise RuntimeError("stop")
        assert text_model.module.training

    @pytest.mark.parametrize("frozen", [True, False])
    def test_the_tower_keeps_its_running_statistics(self, vlm, pictures, frozen):
        if frozen:
            vlm.freeze(["vision"])
        vlm.body.settle_vision()
        tower = vlm.body.transformer.vision_tower
        before = {name: value.clone() for name, value in tower.named_buffers()}
        vlm.body.train()
        vlm.forward([Item(images=(path,)) for path in pictures.values()])
        assert all(torch.equal(value, before[name]) for name, value in tower.named_buffers())
        assert vlm.module.training

    def test_features_are_kept_only_of_a_frozen_tower(self, vlm, tiny_vlm, tmp_path):
        vlm.body.settle_vision()
        assert vlm.body.vision is None
        vlm.freeze(["vision"]).body.settle_vision()
        assert vlm.body.vision is not None
        cached = Embedder.load(tiny_vlm, device="cpu", vision_cache=tmp_path)
        assert cached.body.vision is not None
        cached.body.settle_vision()
        assert cached.body.vision is None


def test_cost_grows_with_words_and_pictures(vlm, pictures):
    picture = pictures["red square"]
    short, long = Item(text="red"), Item(text="red " * 20)
    assert vlm.cost(short) < vlm.cost(long) < vlm.cost(Item(text="red " * 400))
    assert vlm.cost(Item(text="red " * 400)) == vlm.cost(Item(text="red " * 4000))
    tokens = vlm.body.transformer.config.image_seq_length
    assert tokens == 4
    assert vlm.cost(Item(text="red", images=(picture, picture))) == vlm.cost(short) + 2 * tokens


def test_modalities(vlm, text_model):
    assert set(vlm.body.modalities) == {"text", "image"}
    assert text_model.body.modalities == ("text",)


@pytest.mark.parametrize("more", ["", '{% if tools %}{"type": "function"}{% endif %}'], ids=["strings", "with tools"])
def test_a_template_of_strings_is_given_strings(more, tmp_path):
    """Sentence-transformers takes a template that speaks of the type of tools for one of parts, and would embed their repr."""
    from sentence_transformers import SentenceTransformer

    ours = Embedder.load(vlms.build_words(tmp_path / "words", vlms.STRINGS + more), device="cpu")
    said = "it's\nred"
    ids = ours.body.features([[Item(said)]])["input_ids"][0]
    assert ours.body.tokenizer.decode(ids) == f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
    ours.save(tmp_path / "saved")
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert theirs.preprocess([said])["input_ids"][0].tolist() == ids.tolist()
    loaded = Embedder.load(tmp_path / "saved", device="cpu")
    assert loaded.body.identity() == ours.body.identity()
