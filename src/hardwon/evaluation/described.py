"""What a model is, for the report: everything around the weights that can change a number."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from hardwon.artifacts import fingerprint
from hardwon.models import CachedEncoder, Embedder, Reranker
from hardwon.models.body import Body


def described(model: Any) -> dict[str, Any]:
    """A model, or a rule around models, as JSON: type, fingerprint, weights, prompts, pre-processing, number format, device.

    Args:
        model: an `Embedder` or a `Reranker`; of anything else its type, its fingerprint and, of a dataclass, its fields.
    """
    if isinstance(model, CachedEncoder):
        return described(model.encoder)
    made: dict[str, Any] = {"type": type(model).__name__}
    if isinstance(given := getattr(model, "fingerprint", None), str):
        made["fingerprint"] = given
    if isinstance(model, (Embedder, Reranker)):
        return made | _body(model.body)
    if is_dataclass(model) and not isinstance(model, type):
        return made | {f.name: _told(getattr(model, f.name)) for f in fields(model)}
    return made | {name: getattr(model, name) for name in ("depth",) if hasattr(model, name)}


def _told(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _told(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_told(part) for part in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else described(value)


def _body(body: Body) -> dict[str, Any]:
    weights, *around = body.identity()
    model = body.model
    return {
        "weights": weights,
        "preprocessing": fingerprint(around),
        "prompts": {"default": model.default_prompt_name or "", **model.prompts},
        "max_length": int(model.max_seq_length),
        "dtype": sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}),
        "computed_in": body.precision,
        "attention": str(getattr(getattr(body.transformer, "config", None), "_attn_implementation", "") or ""),
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device),
    }
