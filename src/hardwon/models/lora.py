"""Adapters: put in, taken note of, merged."""

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hardwon.errors import MissingExtra, ModelError, unknown
from hardwon.models.options import LoRA

NOT_LANGUAGE = ("vision", "visual", "projector", "audio")


def add_lora(model: Any, lora: LoRA) -> None:
    """Give a `SentenceTransformer` or `CrossEncoder` an adapter; all other weights are frozen.

    Adapters learn in float32 whatever the format of the weights: the steps of training are too small for bfloat16.

    Raises:
        MissingExtra: peft is not installed.
        ModelError: no such layers, or an adapter is there already.
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingExtra("peft", "lora")
    from peft import LoraConfig

    inner = getattr(model[0], "model", None)
    if not isinstance(inner, nn.Module):
        raise ModelError("LoRA needs a transformers model; this one has no layers of that kind")
    if has_adapter(model):
        raise ModelError("this model has an adapter already: leave lora out to train it, or merge it into the weights first")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  (a float is fine)
        lora_dropout=lora.dropout,
        target_modules=_layers(inner, lora),
    )
    graphics = {p.device for p in inner.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(graphics, key=str)):  # peft draws from global state
        torch.manual_seed(lora.seed)
        model.add_adapter(config)
    for name, parameter in inner.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def _layers(inner: nn.Module, lora: LoRA) -> str:
    """The layers as one pattern, which an adapter's folder can hold for a model of any depth."""
    linear = [name for name, module in inner.named_modules() if isinstance(module, nn.Linear) and _repeated(name)]
    # A model that generates holds the others in one that is called "model".
    language = [name for name in linear if not any(part in _root(name) for part in NOT_LANGUAGE)]
    if getattr(inner, "language_model", None) is None and hasattr(inner, "vision_model"):
        language = linear  # a dual encoder: both sides
    found = sorted({name.rpartition(".")[2] for name in language})
    for wanted in lora.layers:
        if wanted not in found:
            raise ModelError(unknown("layer for LoRA", wanted, found))
    if not found:
        raise ModelError(f"{type(inner).__name__} has no linear layers that LoRA could be put on")
    roots = sorted({_root(name).replace(".", r"\.") for name in language})
    return rf"(?:{'|'.join(roots)})\.\d+\.(?:.*\.)?(?:{'|'.join(lora.layers or found)})"


def _root(name: str) -> str:
    """Where repeated layers are: all that comes before the first number."""
    parts = name.split(".")
    return ".".join(parts[: next(n for n, part in enumerate(parts) if part.isdigit())])


def _repeated(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def has_adapter(model: Any) -> bool:
    """Whether a `SentenceTransformer` or `CrossEncoder` holds an adapter of peft."""
    return bool(getattr(getattr(model[0], "model", None), "_hf_peft_config_loaded", False))


@torch.no_grad()
def merged(model: Any) -> Any:
    """A copy of the model with its adapter worked into the weights.

    Raises:
        ModelError: no adapter, or one whose weights are not finite.
    """
    if not has_adapter(model):
        raise ModelError("there is no adapter to merge: save the model as it is")
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = copy.deepcopy(model)
    inner = model[0].model
    for name, layer in list(inner.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            try:
                layer.merge(safe_merge=True)
            except ValueError as error:
                raise ModelError(f"the adapter of {name} cannot be merged: {error}") from error
            inner.set_submodule(name, layer.get_base_layer())
    inner._hf_peft_config_loaded = False
    del inner.peft_config
    return model


def check_base(folder: Path) -> None:
    """Refuse an adapter whose base was a folder that is no longer there, instead of looking for it on the hub.

    Raises:
        ModelError: names the base and where that is written.
    """
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base = str(settings.get("base_model_name_or_path") or "")
    on_hub = base.count("/") == 1 and not base.startswith((".", "/", "~"))
    if not on_hub and not Path(base).is_dir():
        raise ModelError(
            f"{folder} is an adapter of {base!r}, which is not there: put the base back, or name where it is now as "
            f"base_model_name_or_path in {folder / 'adapter_config.json'}"
        )
