"""What a model is and how fast it runs here: what the doctor tells beside its checks."""

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch

from hardwon.items import Item
from hardwon.models.card import pooling_of
from hardwon.models.embedder import Embedder
from hardwon.models.probes import WORDS, encoded, shades

REPEATS = 3
PACKAGES = ("torch", "transformers", "sentence-transformers")


@dataclass(frozen=True)
class Facts:
    """A model and the machine under it.

    Attributes:
        architecture: class of the transformers model inside.
        modalities: what it reads.
        fused: whether it reads text and pictures together.
        dimension: width of the vectors.
        max_length: tokens beyond which text is cut.
        padding_side: where the tokenizer fills up: "left" or "right".
        pooling: which tokens make the vector; "its own" where the architecture does that itself.
        similarity: as the model's configuration has it.
        prompts: texts before an item, by name.
        default_prompt: name of the one that is used unless another is asked for; "" for none.
        parameters: number of weights.
        trainable: number of those that training would change.
        parameter_bytes: what the weights take.
        dtypes: number formats of the weights.
        attention: implementation of attention.
        device: where it ran.
        resident_bytes: the most memory that this process has held so far; 0 where the system does not say.
        cuda_bytes: the most memory of the GPU that was in use; 0 without one.
        texts_per_s: texts of 20 words a second; 0 for a model that reads none or fails at them.
        pictures_per_s: pictures of 224 x 224 pixels a second; 0 for a model that reads none or fails at them.
        versions: of the packages underneath.
    """

    architecture: str
    modalities: tuple[str, ...]
    fused: bool
    dimension: int
    max_length: int
    padding_side: str
    pooling: str
    similarity: str
    prompts: dict[str, str]
    default_prompt: str
    parameters: int
    trainable: int
    parameter_bytes: int
    dtypes: tuple[str, ...]
    attention: str
    device: str
    resident_bytes: int
    cuda_bytes: int
    texts_per_s: float
    pictures_per_s: float
    versions: dict[str, str]


def collect(embedder: Embedder, max_length: int) -> Facts:
    """Facts of a model that has been used already, so that its memory is known and nothing is slow for the first time."""
    body, model = embedder.body, embedder.body.model
    weights = list(model.parameters())
    device = model.device
    return Facts(
        architecture=type(body.transformer if body.transformer is not None else model[0]).__name__,
        modalities=body.modalities,
        fused=body.fused,
        dimension=embedder.dim,
        max_length=max_length,
        padding_side=str(getattr(body.tokenizer, "padding_side", "")),
        pooling=pooling_of(model) or "its own",
        similarity=str(model.similarity_fn_name),
        prompts=dict(model.prompts),
        default_prompt=model.default_prompt_name or "",
        parameters=sum(p.numel() for p in weights),
        trainable=sum(p.numel() for p in weights if p.requires_grad),
        parameter_bytes=sum(p.numel() * p.element_size() for p in weights),
        dtypes=tuple(sorted({str(p.dtype).removeprefix("torch.") for p in weights})),
        attention=str(getattr(getattr(body.transformer, "config", None), "_attn_implementation", "") or ""),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        resident_bytes=_resident_bytes(),
        cuda_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        texts_per_s=_speed(embedder, _texts()) if "text" in body.modalities else 0.0,
        pictures_per_s=_speed(embedder, _pictures()) if "image" in body.modalities else 0.0,
        versions={name: version(name) for name in PACKAGES},
    )


def _texts() -> list[Item]:
    return [Item(text=" ".join(WORDS[(n * (k + 1)) % len(WORDS)] for k in range(19)) + f" {n}") for n in range(16)]


def _pictures() -> list[Item]:
    whole = shades(232, 232)
    return [Item(images=(encoded(whole.crop((n, n, n + 224, n + 224))),)) for n in range(8)]


def _speed(embedder: Embedder, items: Sequence[Item]) -> float:
    """Items a second: the median of some repeats; 0 where they cannot be encoded, which a check of the doctor says."""
    took = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        try:
            embedder.encode(items)
        except Exception:  # whatever goes wrong inside a model
            return 0.0
        took.append(time.perf_counter() - start)
    return len(items) / statistics.median(took)


def _resident_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
