import copy

import numpy as np
import pytest
import tiny
import torch

from hardwon.errors import ModelError
from hardwon.items import Item
from hardwon.models import Embedder, small
from hardwon.models.eyes import TowerEye

OUTSIDE = {
    "embeddings.convolution": "_conv_stem",
    "embeddings.batchnorm": "_bn0",
    "encoder.top_conv": "_conv_head",
    "encoder.top_bn": "_bn1",
}
INSIDE = {
    "expansion.expand_conv": "_expand_conv",
    "expansion.expand_bn": "_bn0",
    "depthwise_conv.depthwise_conv": "_depthwise_conv",
    "depthwise_conv.depthwise_norm": "_bn1",
    "projection.project_conv": "_project_conv",
    "projection.project_bn": "_bn2",
}


def published(state):
    """A state under the names of the published checkpoint, with the classifier that we do not use."""
    made = {"_fc.weight": torch.zeros(2, 2), "_fc.bias": torch.zeros(2)}
    for name, value in state.items():
        if ".squeeze_excite." in name:
            continue
        module, _, kind = name.rpartition(".")
        if module in OUTSIDE:
            made[f"{OUTSIDE[module]}.{kind}"] = value
        else:
            _, _, number, inner = module.split(".", 3)
            made[f"_blocks.{number}.{INSIDE[inner]}.{kind}"] = value
    return made


@pytest.fixture(scope="module")
def tower():
    return tiny.tower()


@pytest.fixture
def pixels():
    return torch.rand(3, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_published_names_fill_a_tower(tower, pixels):
    state = tower.state_dict()
    fresh = type(tower)(tower.config).eval()
    made = small.lite0_weights(published(state), fresh.state_dict())
    fresh.load_state_dict(made, strict=True)
    for name, value in fresh.state_dict().items():
        if ".squeeze_excite." not in name:
            assert torch.equal(value, state[name]), name
    with torch.no_grad():
        assert torch.equal(fresh(pixels).last_hidden_state, tower(pixels).last_hidden_state)


def test_a_weight_that_is_missing_is_noticed(tower):
    source = published(tower.state_dict())
    del source["_blocks.2._bn1.running_var"]
    made = small.lite0_weights(source, tower.state_dict())
    with pytest.raises(RuntimeError, match=r"encoder\.blocks\.2\.depthwise_conv\.depthwise_norm\.running_var"):
        copy.deepcopy(tower).load_state_dict(made, strict=True)


def test_squeeze_and_excitation_is_exactly_the_identity(tower, pixels):
    bare = copy.deepcopy(tower)
    for block in bare.encoder.blocks:
        block.squeeze_excite = torch.nn.Identity()
    with torch.no_grad():
        for scale in (1.0, 1e-6, 50.0):
            assert torch.equal(bare(pixels * scale).last_hidden_state, tower(pixels * scale).last_hidden_state)


def test_the_real_tower_is_lite0():
    from transformers import EfficientNetModel

    with torch.device("meta"):
        real = EfficientNetModel(small.vision_config())
    made = small.lite0_weights(published(real.state_dict()), real.state_dict())
    assert {name: value.shape for name, value in made.items()} == {n: v.shape for n, v in real.state_dict().items()}
    blocks = {name.split(".")[1] for name in published(real.state_dict()) if name.startswith("_blocks")}
    assert len(blocks) == 16
    used = sum(value.numel() for name, value in real.named_parameters() if ".squeeze_excite." not in name)
    assert used + 1281 * 1000 == 4_652_008  # with the classifier: the size that is published for lite0


def test_the_projector_starts_the_same_every_time():
    words = tiny.tokenizer(extra=(small.IMAGE_TOKEN,))
    one, two = (small.fuse(tiny.bert(len(words)), tiny.tower(), words, size=tiny.SIZE) for _ in range(2))
    for name in ("linear_1.weight", "linear_2.weight", "linear_2.bias"):
        assert torch.equal(one.multi_modal_projector.get_parameter(name), two.multi_modal_projector.get_parameter(name))
    assert one.multi_modal_projector.linear_1.weight.std() > 0
    assert not one.training


def test_fusing_keeps_the_pretrained_weights(tower):
    words = tiny.tokenizer(extra=(small.IMAGE_TOKEN,))
    language = tiny.bert(len(words))
    made = small.fuse(language, tower, words, size=tiny.SIZE)
    for part, source in ((made.vision_tower, tower), (made.language_model, language)):
        for name, value in source.state_dict().items():
            assert torch.equal(part.state_dict()[name], value), name


@pytest.mark.parametrize("order", [("image", "text"), ("text", "image")])
def test_pictures_come_first_whatever_the_order(vlm, pictures, order):
    from PIL import Image

    parts = {"image": Image.open(pictures["red square"]), "text": "red"}
    features = vlm.body.model.preprocess([{name: parts[name] for name in order}])
    words = vlm.body.tokenizer
    assert words.convert_ids_to_tokens(features["input_ids"][0].tolist()) == ["[CLS]", *["<image>"] * 4, "red", "[SEP]"]


def test_a_pair_is_one_sequence_with_a_separator(vlm, pictures):
    from hardwon.models import Reranker

    reranker = Reranker.start_from(vlm)
    item = Item(text="blue", images=(pictures["blue bar"],))
    (ids,) = reranker.body.features([[Item(text="red", instruction="find"), item]])["input_ids"].tolist()
    shown = reranker.body.tokenizer.convert_ids_to_tokens(ids)
    assert shown == ["[CLS]", "find", "red", "[SEP]", *["<image>"] * 4, "blue", "[SEP]"]


def test_assemble_puts_the_parts_together(tmp_path, pictures):
    from transformers import EfficientNetModel

    vision, language = tmp_path / "vision", tmp_path / "language" / "inner"
    vision.mkdir()
    words = tiny.tokenizer()
    tiny.bert(len(words)).save_pretrained(language)
    words.save_pretrained(language)
    with torch.random.fork_rng():
        source = published(EfficientNetModel(small.vision_config()).state_dict())
    torch.save(source, vision / "lite0.pth")
    made = Embedder.load(small.assemble(tmp_path / "made", vision, tmp_path / "language"), device="cpu")
    assert made.dim == tiny.WIDTH
    assert made.body.model.max_seq_length == small.MAX_TOKENS
    assert np.isfinite(made.encode([Item(text="red", images=(pictures["red bar"],))])).all()
    assert made.body.transformer.config.image_seq_length == 16
    stem = made.body.transformer.vision_tower.embeddings.convolution.weight
    assert torch.equal(stem, source["_conv_stem.weight"])


def test_assemble_without_weights_says_how_to_get_them(tmp_path):
    with pytest.raises(ModelError, match=r"no weights under .*: run `hardwon assets`"):
        small.assemble(tmp_path / "made", tmp_path, tmp_path)


def test_the_same_parts_give_the_same_model_whatever_was_drawn_before():
    """The new row of the word table and the projector are random, but from a seed of their own."""
    import tiny
    import torch

    from hardwon.models import small

    tokenizer = tiny.tokenizer([small.IMAGE_TOKEN])
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        made.append(small.fuse(tiny.bert(len(tokenizer) - 1), tiny.tower(), tokenizer, tiny.SIZE).state_dict())
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def torchvisions(pictures):
    """The same settings in the class that transformers takes where torchvision is installed."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor.from_dict(pictures.to_dict())


def test_pictures_are_resized_by_pil_even_beside_torchvision(tiny_vlm):
    """What transformers takes depends on what is installed; vectors must not."""
    made = Embedder.load(tiny_vlm).body
    assert type(made.processor.image_processor).__name__ == "CLIPImageProcessorPil"
    made.processor.image_processor = torchvisions(made.processor.image_processor)
    assert small.settle_pixels(made.model)
    assert not small.settle_pixels(made.model)
    assert type(made.processor.image_processor).__name__ == "CLIPImageProcessorPil"


def test_features_of_another_way_of_resizing_are_not_taken_for_ours(vlm):
    pictures = vlm.body.processor.image_processor
    ours, theirs = (TowerEye(vlm.body.transformer.vision_tower, made) for made in (pictures, torchvisions(pictures)))
    assert ours.identity() != theirs.identity()
    assert ours.state() != theirs.state()
