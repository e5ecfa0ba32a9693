"""Checkpoints: weights, optimizer, position and generator state, written whole or not at all.

A checkpoint is an artifact with a checksum of every file; the newest one that is whole is used, damaged ones are passed over.
safetensors and JSON only.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hardwon import artifacts
from hardwon.errors import ArtifactError

KEEP = 2

Parameters = Mapping[str, nn.Parameter]


def save(folder: Path, step: int, parameters: Parameters, optimizer: torch.optim.Optimizer) -> None:
    """Write `folder/step-<n>` and remove all but the newest `KEEP`. `step` is the number of finished updates."""
    tensors = {f"weight.{name}": p.detach() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        for kind, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{kind}.{name}"] = value
    tensors["generator"] = torch.random.get_rng_state()
    if torch.cuda.is_initialized():
        tensors["cuda_generator"] = torch.cuda.get_rng_state()
    path = folder / f"step-{step:07d}"
    shutil.rmtree(path, ignore_errors=True)  # what is there was passed over as damaged: the run would have gone on from it
    with artifacts.writing(path, "checkpoint", {"step": step}) as draft:
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, draft.path / "state.safetensors")
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)


def begun(folder: Path) -> bool:
    """Whether there is a checkpoint, be it damaged: one that was being written when its run was killed is none."""
    return any(folder.glob(f"step-*/{artifacts.MANIFEST}"))


def restore(folder: Path, parameters: Parameters, optimizer: torch.optim.Optimizer) -> tuple[int, list[str]]:
    """Load the newest whole checkpoint.

    Returns:
        The number of finished updates (0 if there is no checkpoint), and what was wrong with newer ones.
    """
    damaged = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            manifest = artifacts.load(path, "checkpoint")
        except ArtifactError as error:
            damaged.append(str(error))
            continue
        _load(load_file(path / "state.safetensors"), parameters, optimizer)
        return int(manifest.inputs["step"]), damaged
    return 0, damaged


def _load(tensors: dict[str, torch.Tensor], parameters: Parameters, optimizer: torch.optim.Optimizer) -> None:
    states: dict[torch.Tensor, dict[str, Any]] = {}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
            ending = f".{name}"
            found = {
                key.removeprefix("optimizer.").removesuffix(ending): value
                for key, value in tensors.items()
                if key.startswith("optimizer.") and key.endswith(ending)
            }
            if found:
                states[parameter] = {kind: v if kind == "step" else v.to(parameter.device) for kind, v in found.items()}
    optimizer.state.clear()
    optimizer.state.update(states)
    torch.random.set_rng_state(tensors["generator"])
    if "cuda_generator" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda_generator"])
