"""Vectors of the doctor's probes, kept beside a model: whether a later library still gives the same."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hardwon.artifacts import replacing
from hardwon.errors import ModelError
from hardwon.models.embedder import Embedder
from hardwon.models.preflight import refusal
from hardwon.models.probes import short_probes

FILE = "probes.safetensors"
DRIFT = 1e-3  # difference of cosine from which on a model is not what it was
PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "pillow")


def keep(embedder: Embedder, folder: Path) -> int:
    """Encode the short probes, each alone, and write their vectors into the model's folder; returns how many.

    Raises:
        ModelError: a vector that is not finite.
    """
    probes = [probe for probe in short_probes(embedder.body)[0] if not refusal(embedder.body, (probe.item,))]
    with torch.no_grad(), embedder.evaluating():
        made = {probe.item.key: embedder.forward([probe.item]).cpu().numpy()[0] for probe in probes}
    wrong = [probe.name for probe in probes if not np.isfinite(made[probe.item.key]).all()]
    if wrong:
        raise ModelError(f"the vector of the probe {wrong[0]!r} is not finite: nothing was kept")
    about = {"versions": json.dumps({name: version(name) for name in PACKAGES}), "device": embedder.body.model.device.type}
    with replacing(folder / FILE) as neighbour:
        save_file(made, neighbour, metadata=about)
    return len(made)


def kept(folder: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Vectors by `Item.key`, and what they were made with: "versions" and "device". Empty where none were kept.

    Raises:
        ModelError: a file that cannot be read.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return {}, {}
    try:
        with safe_open(path, "numpy") as file:
            about = dict(file.metadata() or {})
            return {key: file.get_tensor(key) for key in file.keys()}, about | {"versions": json.loads(about["versions"])}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read ({error}): delete it, or write it again with `hardwon doctor --keep`"
        ) from error


def changed(about: dict[str, Any], device: str) -> list[str]:
    """What is another version, or another kind of device, than when vectors were kept; in words."""
    told = [
        f"{name} {then} then, {version(name)} now"
        for name, then in about["versions"].items()
        if name in PACKAGES and version(name) != then
    ]
    return told + ([f"computed on {about['device']} then, on {device} now"] if about["device"] != device else [])
