"""What one says when a model is loaded, and what of it a saved model keeps."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import tiny
import torch
import vlms
from safetensors.torch import load_file, save_file

import hardwon
from hardwon.errors import MissingExtra, ModelError
from hardwon.items import Item
from hardwon.losses import InfoNCE
from hardwon.models import Embedder, LoRA, Options
from hardwon.training import Settings

KINDS = {**vlms.DUAL, **vlms.DECODERS}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folders of models by architecture, made when first asked for; never write into them."""

    class Made(dict):
        def __missing__(self, name):
            folder = tmp_path_factory.mktemp("options") / name
            self[name] = tiny.build_text(folder) if name == "text" else KINDS[name](folder)
            return self[name]

    return Made()


@pytest.fixture
def items(pictures):
    red, blue = pictures["red square"], pictures["blue circle"]
    return [
        Item("a red square"),
        Item(images=(red,)),
        Item("what is it", images=(blue,)),
        Item("the bar", instruction="find it"),
        Item(images=(blue, red), instruction="find the given image"),
    ]


def load(folder, **options):
    return Embedder.load(folder, device="cpu", **options)


def unchecked(**said):
    """Options built without the checks of types, as a user's program would."""
    options = object.__new__(Options)
    for name, given in (vars(Options()) | said).items():
        object.__setattr__(options, name, given)
    options.__post_init__()


def plain(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def theirs(folder, items, **prompt):
    """Vectors of items without instructions as sentence-transformers gives them."""
    from hardwon.pictures import open_picture

    shown = []
    for item in items:
        seen = [open_picture(picture) for picture in item.images]
        shown.append(({"image": seen if seen[1:] else seen[0]} if seen else {}) | ({"text": item.text} if item.text else {}))
    return plain(folder).encode(shown, **prompt)


def close(a, b, to=1e-5):
    np.testing.assert_allclose(a, b, atol=to)


def apart(a, b):
    """How far the nearest pair of vectors is apart."""
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b), axis=-1).min())


class TestPooling:
    @pytest.mark.parametrize("name", vlms.DECODERS)
    def test_a_model_that_generates_is_read_at_its_last_token(self, home, items, name):
        close(load(vlms.bare(home[name])).encode(items), load(home[name]).encode(items))

    def test_others_are_averaged(self, home, tmp_path):
        model = plain(home["text"])[0].model
        model.save_pretrained(tmp_path)
        plain(home["text"]).tokenizer.save_pretrained(tmp_path)
        made = load(tmp_path)
        close(made.encode([Item("a red square")]), theirs(home["text"], [Item("a red square")]))
        assert made.body.model[1].pooling_mode == "mean"

    def test_what_is_asked_for_is_done_and_kept(self, home, items, tmp_path):
        last, mean = load(home["qwen2-vl"]), load(home["qwen2-vl"], pooling="mean")
        assert apart(last.encode(items), mean.encode(items)) > 1e-2
        mean.save(tmp_path / "mean")
        assert plain(tmp_path / "mean")[1].pooling_mode == "mean"
        close(load(tmp_path / "mean").encode(items), mean.encode(items), 1e-6)

    def test_refused(self, home):
        with pytest.raises(ModelError, match=r"unknown pooling 'lats': did you mean 'last'\? Valid: cls, last, max, mean"):
            unchecked(pooling="lats")
        with pytest.raises(ModelError, match="gives one vector for an item itself"):
            load(home["clip"], pooling="mean")

    def test_saved_vectors_have_length_one_even_if_the_model_had_no_such_step(self, home, tmp_path):
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Normalize

        loose = plain(home["text"])
        SentenceTransformer(modules=[m for m in loose if not isinstance(m, Normalize)]).save(str(tmp_path / "loose"))
        load(tmp_path / "loose").save(tmp_path / "ours")
        vectors = theirs(tmp_path / "ours", [Item("a red square"), Item("the bar")])
        close(np.linalg.norm(vectors, axis=1), 1, 1e-6)
        assert abs(np.linalg.norm(theirs(tmp_path / "loose", [Item("a red square")])) - 1) > 1e-2


class TestInstruction:
    @pytest.mark.parametrize("name", ["text", "clip", "llava", "qwen2-vl", "qwen3-vl"])
    def test_one_for_all_is_the_default_prompt_of_sentence_transformers(self, home, items, name, tmp_path):
        readable = {"text": items[:1], "clip": items[:1]}.get(name, items[:3])
        told = load(home[name], instruction="represent the given")
        vectors = told.encode(readable)
        assert apart(vectors, load(home[name]).encode(readable)) > 1e-3
        told.save(tmp_path / "told")
        close(theirs(tmp_path / "told", readable), vectors)
        close(load(tmp_path / "told").encode(readable), vectors, 1e-6)

    def test_one_for_each_kind_of_item(self, home, items, tmp_path):
        said = {"text": "find it", "image": "represent the given image", "image+text": "what is it"}
        told = load(home["qwen2-vl"], instruction=said)
        told.save(tmp_path / "told")
        vectors = load(tmp_path / "told").encode(items)
        close(vectors, told.encode(items), 1e-6)
        for n, kind in enumerate(said):
            close(vectors[n : n + 1], theirs(tmp_path / "told", items[n : n + 1], prompt_name=kind))

    def test_an_item_that_brings_its_own_is_left_alone(self, home, items):
        close(load(home["qwen2-vl"], instruction="the given").encode(items[3:]), load(home["qwen2-vl"]).encode(items[3:]))

    def test_items_with_and_without_share_a_batch(self, home, items):
        told = load(home["llava"], instruction={"text": "find it"})
        together = told.forward(items).detach().numpy()
        close(together, np.concatenate([told.forward([item]).detach().numpy() for item in items]))

    def test_room_is_left_for_it_where_text_is_cut(self, home, pictures):
        long = Item("the quick brown fox " * 200, images=(pictures["red square"],))
        told = load(home["qwen2-vl"], instruction="represent the given image " * 3)
        features = told.body.features([[long]], told.body.prompt(long))
        assert features["input_ids"].shape[1] <= vlms.MAX_TOKENS
        assert np.isfinite(told.encode([long])).all()

    def test_it_changes_the_fingerprint(self, home):
        made = {load(home["text"], instruction=said).fingerprint for said in (None, "find it", "find a", {"text": "find it"})}
        assert len(made) == 4

    def test_unknown_kind(self, home):
        with pytest.raises(ModelError, match=r"unknown kind of item with an instruction 'images': did you mean 'image'\?"):
            load(home["text"], instruction={"images": "x"})


class TestNumbers:
    def test_format_of_the_weights(self, home, items):
        half = load(home["qwen2-vl"], dtype="bfloat16")
        assert {p.dtype for p in half.module.parameters()} == {torch.bfloat16}
        cosines = (half.encode(items) * load(home["qwen2-vl"]).encode(items)).sum(axis=1)
        assert 0.98 < cosines.min() < 0.999999

    @pytest.mark.parametrize("name", ["text", "qwen2-vl"])
    def test_attention(self, home, items, name):
        readable = items[:1] if name == "text" else items
        made = {kind: load(home[name], attention=kind) for kind in ("eager", "sdpa")}
        for kind, model in made.items():
            assert model.body.transformer.config._attn_implementation == kind
        close(made["eager"].encode(readable), made["sdpa"].encode(readable))

    def test_refused(self, home):
        with pytest.raises(ModelError, match="unknown dtype 'float8'"):
            unchecked(dtype="float8")
        with pytest.raises(ModelError, match="cannot be loaded"):
            load(home["text"], attention="quick")


class TestMaxPixels:
    @pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "llava-onevision"])
    def test_fewer_tokens_also_after_saving(self, home, name, tmp_path):
        large = tmp_path / "large.png"
        tiny.draw("green", "triangle", 200).save(large)
        item, limit = Item(images=(large,)), 32 * 32
        free, tight = load(home[name]), load(home[name], max_pixels=limit)
        tight.save(tmp_path / "tight")
        seen = [len(m.body.features([[item]])["input_ids"][0]) for m in (free, tight, load(tmp_path / "tight"))]
        assert seen[1] == seen[2] < seen[0]
        assert tight.cost(item) < free.cost(item)
        close(theirs(tmp_path / "tight", [item]), tight.encode([item]))

    def test_refused_where_it_has_no_effect(self, home):
        for name in ("clip", "llava"):
            with pytest.raises(ModelError, match="max_pixels has no effect on this model"):
                load(home[name], max_pixels=1000)
        with pytest.raises(ModelError, match="max_pixels 1,000 is below the smallest size of this model, 1,024"):
            load(home["llava-onevision"], max_pixels=1000)
        with pytest.raises(ModelError, match="max_pixels must be 1 or more, got 0"):
            load(home["qwen2-vl"], max_pixels=0)


def test_parts_are_frozen_at_once(home):
    frozen = {n for n, p in load(home["llava"], freeze=("vision",)).module.named_parameters() if not p.requires_grad}
    assert frozen
    assert all("vision_tower" in name for name in frozen)


def learn(model, pictures, steps=3):
    return hardwon.train(model, tiny.examples(pictures), InfoNCE(0.1), steps=steps, settings=Settings(4, learning_rate=1e-2))


def weights(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


class TestLoRA:
    @pytest.mark.parametrize("name", ["text", *KINDS])
    def test_only_the_language_models_repeated_layers_get_adapters(self, home, name):
        made = load(home[name], lora=LoRA(rank=4))
        learning = [n for n, p in made.module.named_parameters() if p.requires_grad]
        assert learning
        assert all("lora_" in n and any(part.isdigit() for part in n.split(".")[2:]) for n in learning)
        assert any("vision" in n or "visual" in n for n in learning) == (name in vlms.DUAL)
        assert not any("projector" in n or "merger" in n or "pooler" in n or "lm_head" in n for n in learning)

    @pytest.mark.parametrize("name", ["qwen2-vl", "llava-onevision"])
    def test_training_changes_nothing_else(self, home, pictures, name):
        made = load(home[name], lora=LoRA(rank=4))
        before = weights(made)
        learn(made, pictures)
        changed = {n for n, value in weights(made).items() if not torch.equal(value, before[n])}
        assert changed == {n for n in before if "lora_" in n}

    @pytest.mark.parametrize("name", ["text", "qwen2-vl", "llava"])
    def test_alone_and_merged_give_the_same_vectors(self, home, pictures, items, name, tmp_path):
        readable = items[:1] if name == "text" else items
        examples = tiny.texts() if name == "text" else tiny.examples(pictures)
        made = load(home[name], lora=LoRA(rank=4))
        start = made.encode(readable)
        hardwon.train(made, examples, InfoNCE(0.1), steps=3, settings=Settings(4, learning_rate=1e-2))
        vectors = made.encode(readable)
        assert apart(vectors, start) > 1e-3
        made.save(tmp_path / "alone")
        made.save(tmp_path / "whole", merge=True)
        assert not list((tmp_path / "alone").glob("model*.safetensors"))
        assert not (tmp_path / "whole" / "adapter_config.json").exists()
        for folder in ("alone", "whole"):
            close(load(tmp_path / folder).encode(readable), vectors)
            close(theirs(tmp_path / folder, readable[:1]), vectors[:1])
        close(made.encode(readable), vectors, 1e-7)  # merging is done on a copy

    def test_a_saved_adapter_is_trained_on_or_not(self, home, pictures, tmp_path):
        load(home["qwen2-vl"], lora=LoRA(rank=4)).save(tmp_path / "alone")
        again = load(tmp_path / "alone")
        with pytest.raises(ModelError, match="has an adapter already"):
            load(tmp_path / "alone", lora=LoRA())
        with pytest.raises(ModelError, match="no adapter to merge"):
            load(home["qwen2-vl"]).save(tmp_path / "x", merge=True)
        assert any("lora_" in name for name, _ in again.module.named_parameters())

    def test_starts_from_its_seed_and_leaves_global_state_alone(self, home):
        starts = []
        for state, seed in ((1, 0), (2, 0), (2, 3)):
            torch.manual_seed(state)
            made = load(home["qwen2-vl"], lora=LoRA(rank=4, seed=seed))
            starts.append(torch.cat([p.detach().flatten() for n, p in made.module.named_parameters() if "lora_" in n]))
            after = torch.rand(1)
            torch.manual_seed(state)
            assert torch.equal(after, torch.rand(1))
        assert torch.equal(starts[0], starts[1])
        assert not torch.equal(starts[1], starts[2])

    def test_adapters_learn_in_single_precision(self, home):
        made = load(home["qwen2-vl"], lora=LoRA(rank=4), dtype="bfloat16")
        kinds = {("lora_" in name, p.dtype) for name, p in made.module.named_parameters()}
        assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
        assert np.isfinite(made.encode([Item("a red square")])).all()

    def test_named_layers(self, home):
        made = load(home["qwen2-vl"], lora=LoRA(layers=("q_proj", "v_proj")))
        assert {n.split(".lora_")[0].rpartition(".")[2] for n, _ in made.module.named_parameters() if "lora_" in n} == {
            "q_proj",
            "v_proj",
        }
        with pytest.raises(ModelError, match=r"unknown layer for LoRA 'q_prj': did you mean 'q_proj'\?"):
            load(home["qwen2-vl"], lora=LoRA(layers=("q_prj",)))
        with pytest.raises(ModelError, match="rank must be 1 or more"):
            LoRA(rank=0)

    def test_without_peft_the_error_names_the_extra(self, home, monkeypatch):
        found = importlib.util.find_spec
        monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "peft" else found(name, *a))
        with pytest.raises(MissingExtra, match=r"hardwon\[lora\]"):
            load(home["text"], lora=LoRA())

    def test_a_base_that_has_moved_is_named(self, home, tmp_path):
        shutil.copytree(home["text"], tmp_path / "base")
        load(tmp_path / "base", lora=LoRA(rank=2)).save(tmp_path / "alone")
        (tmp_path / "base").rename(tmp_path / "elsewhere")
        with pytest.raises(ModelError, match=r"adapter of '.*base', which is not there.*adapter_config\.json"):
            load(tmp_path / "alone")

    @pytest.mark.parametrize("change", ["delete", "rename"])
    def test_an_adapter_that_lacks_a_weight_is_refused(self, home, tmp_path, change):
        load(home["text"], lora=LoRA(rank=2)).save(tmp_path / "alone")
        file = next((tmp_path / "alone").glob("adapter_model.safetensors"))
        kept = load_file(file)
        name = sorted(kept)[1]
        value = kept.pop(name)
        save_file(kept if change == "delete" else kept | {name.replace("lora_", "lara_"): value}, file)
        with pytest.raises(ModelError, match="lacks"):
            load(tmp_path / "alone")


class TestCard:
    def test_it_says_what_the_model_is_and_how_it_was_made(self, home, tmp_path):
        made = load(home["qwen2-vl"], instruction={"image": "represent the | given image"}, lora=LoRA(rank=2))
        about = {"loss": "InfoNCE(0.02)", "data": {"pairs": 7}, "metrics": {"loss": 0.5}, "recipe": "Train('x')"}
        made.save(tmp_path / "made", about)
        text = (tmp_path / "made" / "README.md").read_text()
        assert text.startswith("---\nlibrary_name: sentence-transformers\npipeline_tag: sentence-similarity\n")
        for said in (
            "| reads | text, image",
            "| vector | 32 numbers of length 1 |",
            "| pooling | lasttoken |",
            "| loss | InfoNCE(0.02) |",
            "| data | pairs: 7 |",
            "represent the \\| given image",
            "Train('x')",
            f"| torch | {torch.__version__} |",
            str(home["qwen2-vl"]),
        ):
            assert said in text, said
        assert json.loads((tmp_path / "made" / "hardwon.json").read_text()) == about
