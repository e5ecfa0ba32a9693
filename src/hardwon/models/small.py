"""The built-in small backbone: the shape of LLaVA in miniature, put together from two real pretrained models.

EfficientNet-lite0 (ImageNet) -> two-layer projector (new) -> all-MiniLM-L6-v2 (sentences), with text and picture tokens in one
sequence. It is a *standard* transformers architecture: `FastVlmModel`, whose vision tower may be convolutional, around
`EfficientNetModel` and `BertModel`. So `SentenceTransformer(folder)` loads what we train, without this package and without
remote code.

lite0 is EfficientNet-B0 without squeeze-and-excitation and with ReLU6. transformers' EfficientNet always has those layers; here
they get weights that make them the identity in float32 (a sigmoid of 100 is exactly 1), so the pretrained function is kept.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hardwon.errors import ModelError

IMAGE_TOKEN = "<image>"
PICTURE_SIZE = 128  # pixels; the tower's stride is 32, so a picture is 16 tokens
STRIDE, WIDTH, VISION_WIDTH = 32, 384, 1280
MAX_TOKENS = 160
# Pictures first, then text: the order in which a dict of inputs names them must not matter. A pair (query, document) is one
# sequence with [SEP] between its halves, which is what a cross-encoder reads.
TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %} [SEP] {% endif %}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content if part.type == 'image' %}<image>{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
    "{% endif %}{% endfor %}"
)


def vision_config() -> Any:
    """EfficientNet-lite0 in transformers' terms."""
    from transformers import EfficientNetConfig

    config = EfficientNetConfig(
        image_size=PICTURE_SIZE,
        hidden_dim=VISION_WIDTH,
        hidden_act="relu6",
        width_coefficient=1.0,
        depth_coefficient=1.0,
        batch_norm_eps=1e-3,
        drop_connect_rate=0.0,
        squeeze_expansion_ratio=1e-6,  # one channel: the smallest squeeze-and-excitation layer there is
        depthwise_padding=[],  # TensorFlow's SAME padding at every stride
    )
    config.hidden_size = VISION_WIDTH  # the name by which FastVLM asks for it
    return config


def lite0_weights(source: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the published lite0 checkpoint under transformers' names.

    Args:
        source: state of the published checkpoint.
        target: state of an `EfficientNetModel`; gives shapes of the layers that lite0 lacks.
    """
    made = {
        name: torch.full_like(value, 100.0) if name.endswith("expand.bias") else torch.zeros_like(value)
        for name, value in target.items()
        if ".squeeze_excite." in name
    }
    parts = {
        "_conv_stem": "embeddings.convolution",
        "_bn0": "embeddings.batchnorm",
        "_conv_head": "encoder.top_conv",
        "_bn1": "encoder.top_bn",
    }
    inside = {
        "_expand_conv": "expansion.expand_conv",
        "_bn0": "expansion.expand_bn",
        "_depthwise_conv": "depthwise_conv.depthwise_conv",
        "_bn1": "depthwise_conv.depthwise_norm",
        "_project_conv": "projection.project_conv",
        "_bn2": "projection.project_bn",
    }
    for name, value in source.items():
        head, *rest = name.split(".")
        if head == "_blocks":
            made[".".join(["encoder.blocks", rest[0], inside[rest[1]], *rest[2:]])] = value
        elif head in parts:
            made[".".join([parts[head], *rest])] = value
    return made


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.model_max_length = MAX_TOKENS
    return tokenizer


def processor(tokenizer: Any, size: int = PICTURE_SIZE) -> Any:
    """LLaVA's processor with lite0's pre-processing: bicubic to a square, then (x - 127) / 128."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    pictures = CLIPImageProcessorPil(
        do_resize=True,
        size={"height": size, "width": size},
        resample=3,
        do_center_crop=False,
        do_convert_rgb=True,
        do_rescale=True,
        rescale_factor=1 / 128,
        do_normalize=True,
        image_mean=[127 / 128] * 3,
        image_std=[1.0] * 3,
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=STRIDE,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
        image_token=IMAGE_TOKEN,
    )


def has_tower(model: Any) -> bool:
    """Whether the tower's own features can be kept: the architecture of the built-in backbone."""
    return type(model).__name__ == "FastVlmModel"


def settle_pixels(model: Any) -> bool:
    """The built-in backbone's pictures are resized by PIL, whether or not torchvision is installed.

    Transformers prefers torchvision where it can be had, whose pixels differ a little: features by up to 0.026 of 6, and the
    same seed trained another model (measured). Whoever wraps the model settles it, since what is saved cannot say it. Of other
    models the class is part of the fingerprint.

    Returns:
        Whether something had to be changed.
    """
    processor: Any = getattr(model[0], "processor", None)
    if not has_tower(getattr(model[0], "model", None)):
        return False
    from transformers import CLIPImageProcessorPil

    pictures = processor.image_processor
    if isinstance(pictures, CLIPImageProcessorPil):
        return False
    processor.image_processor = CLIPImageProcessorPil.from_dict(pictures.to_dict())
    return True


def fuse(language: Any, tower: Any, tokenizer: Any, size: int = PICTURE_SIZE) -> Any:
    """A `FastVlmModel` around a BERT and a convolutional tower; the projector starts small and random.

    The same parts give the same model, to the bit: everything random here is drawn from a seed of its own.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _fused(language, tower, tokenizer, size)


def _fused(language: Any, tower: Any, tokenizer: Any, size: int) -> Any:
    from transformers import FastVlmConfig, FastVlmModel

    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = FastVlmConfig(
        vision_config=tower.config.to_dict(),
        text_config=language.config.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(size // STRIDE) ** 2,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        multimodal_projector_bias=True,
    )
    model = FastVlmModel(config)
    model.vision_tower.load_state_dict(tower.state_dict())
    model.language_model.load_state_dict(language.state_dict())
    for layer in (model.multi_modal_projector.linear_1, model.multi_modal_projector.linear_2):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    # Picture tokens should look like word embeddings to the language model: same typical length.
    words = language.get_input_embeddings().weight
    model.multi_modal_projector.linear_2.weight.data *= float(words.detach().std())
    return model.eval()


def save(model: Any, made_processor: Any, folder: Path) -> None:
    """Write a folder that `SentenceTransformer(folder)` loads: transformer, mean pooling, unit length."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        made_processor.save_pretrained(scratch)
        transformer = Transformer(scratch)
        pooling = Pooling(model.config.text_config.hidden_size, pooling_mode="mean")
        SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu").save(
            str(folder), create_model_card=False
        )


def assemble(folder: Path, vision: Path, language: Path) -> Path:
    """Put the built-in backbone together and save it.

    Args:
        folder: where to.
        vision: folder of the asset "vision" (`hardwon.data.assets`).
        language: folder of the asset "language".

    Returns:
        `folder`, which `Embedder.load` and `SentenceTransformer` take.
    """
    from transformers import BertModel, EfficientNetModel

    found = sorted(vision.rglob("*.pth")), sorted(language.rglob("model.safetensors"))
    if not all(found):
        raise ModelError(f"no weights under {vision} or {language}: run `hardwon assets`")
    tower = EfficientNetModel(vision_config()).eval()
    # The only .pth that is ever read: a pinned, checksummed asset, and tensors only.
    source = torch.load(found[0][0], map_location="cpu", weights_only=True)
    tower.load_state_dict(lite0_weights(source, tower.state_dict()), strict=True)
    tokenizer = _tokenizer(found[1][0].parent)
    bert = BertModel.from_pretrained(str(found[1][0].parent), add_pooling_layer=True)
    folder.mkdir(parents=True, exist_ok=True)
    save(fuse(bert, tower, tokenizer), processor(tokenizer), folder)
    return folder
