"""What one may say about a model when it is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from hardwon.errors import ModelError, unknown

Pooling = Literal["last", "mean", "cls", "max"]
Dtype = Literal["float32", "bfloat16", "float16"]
MODALITIES = ("text", "image", "video", "image+text", "video+text", "image+video", "image+video+text")  # see Item.modality


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on linear layers; everything else is frozen. Hu et al. 2021, arXiv:2106.09685.

    Attributes:
        rank: of the update of each layer.
        alpha: the update is scaled by alpha / rank.
        dropout: on what goes into the update.
        layers: names of linear layers ("q_proj", "v_proj" ...); all those in the repeated layers of the language model if
            empty, or of both encoders of a dual encoder.
        seed: of the weights that it starts from.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    layers: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ModelError(f"rank must be 1 or more, alpha above 0 and dropout in [0, 1), got {self}")


@dataclass(frozen=True)
class Options:
    """How a model is loaded; None leaves everything as the model's folder says it.

    Attributes:
        pooling: how the vectors of the tokens become one: "last", "mean", "cls" or "max". Of a folder that does not say,
            models that generate get "last", others "mean".
        instruction: what items are shown with that bring none of their own: a text, or one for each kind of item ("text",
            "image", "image+text" ...). Stored with the model as a prompt of sentence-transformers, which places it where
            the model expects it: before a text, or as the system's turn of a chat.
        lora: adapters to train instead of the weights.
        freeze: parts that are not trained; see `Embedder.freeze`.
        max_pixels: width x height that a picture is scaled down to, for models that read pictures in their own size.
        dtype: number format of the weights; that of the checkpoint if None.
        attention: "eager", "sdpa", "flash_attention_2" ...; what transformers chooses if None.
    """

    pooling: Pooling | None = None
    instruction: str | Mapping[str, str] | None = None
    lora: LoRA | None = None
    freeze: tuple[str, ...] = ()
    max_pixels: int | None = None
    dtype: Dtype | None = None
    attention: str | None = None

    def __post_init__(self) -> None:
        if self.pooling is not None and self.pooling not in get_args(Pooling):
            raise ModelError(unknown("pooling", self.pooling, get_args(Pooling)))
        if self.dtype is not None and self.dtype not in get_args(Dtype):
            raise ModelError(unknown("dtype", self.dtype, get_args(Dtype)))
        if isinstance(self.instruction, Mapping):
            for name in self.instruction:
                if name not in MODALITIES:
                    raise ModelError(unknown("kind of item with an instruction", name, MODALITIES))
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ModelError(f"max_pixels must be 1 or more, got {self.max_pixels}")

    @property
    def loading(self) -> dict[str, str]:
        """What transformers is told."""
        return {
            name: value for name, value in (("dtype", self.dtype), ("attn_implementation", self.attention)) if value is not None
        }
