"""Checkpoints: weights, optimizer, position and generator state, written whole or not at all.

A checkpoint is an artifact with a checksum of every file; the newest one that is whole is used, damaged ones are passed over.
safetensors and JSON only.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hardwon import artifacts
from hardwon.distributed import parted, whole
from hardwon.errors import ArtifactError

KEEP = 2
STATE = "state.safetensors"

Parameters = Mapping[str, nn.Parameter]
Tensors = dict[str, torch.Tensor]


def tensors_of(parameters: Parameters, optimizer: torch.optim.Optimizer, *, keep: bool = True) -> Tensors:
    """What a checkpoint holds of weights and optimizer, by name.

    Args:
        parameters: what is learned; where each process holds a part, all of them must ask.
        optimizer: theirs.
        keep: whether this process is the one that writes; {} if not.
    """
    made: Tensors = {}

    def add(name: str, value: torch.Tensor) -> None:
        put_together = whole(value)
        if keep:  # of parts that are put together, no more than one at a time on the device
            made[name] = put_together if put_together is value else put_together.cpu()

    for name, parameter in parameters.items():
        add(f"weight.{name}", parameter.detach())
        for kind, value in optimizer.state.get(parameter, {}).items():
            add(f"optimizer.{kind}.{name}", value)
    return made


def save(folder: Path, step: int, parameters: Parameters, optimizer: torch.optim.Optimizer) -> None:
    """Write `folder/step-<n>` and remove all but the newest `KEEP`. `step` is the number of finished updates.

    Raises:
        ArtifactError: no room, a folder that cannot be written, or weights that are not finite; older checkpoints stay.
    """
    write(folder, step, tensors_of(parameters, optimizer))


def write(folder: Path, step: int, tensors: Tensors) -> None:
    """`save`, of tensors by name."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ArtifactError(
                f"after step {step}, {name} is not finite: no checkpoint was written. {_last(folder)} "
                "Go on from there with a lower learning rate"
            )
    tensors = tensors | {"generator": torch.random.get_rng_state()}
    if torch.cuda.is_initialized():
        tensors["cuda_generator"] = torch.cuda.get_rng_state()
    path = folder / f"step-{step:07d}"
    shutil.rmtree(path, ignore_errors=True)  # what is there was passed over as damaged: the run would have gone on from it
    try:
        with artifacts.writing(path, "checkpoint", {"step": step}) as draft:
            save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, draft.path / STATE)
            with open(draft.path / STATE, "rb+") as file:
                os.fsync(file.fileno())  # before the manifest says that it is whole
    except (OSError, SafetensorError) as error:
        shutil.rmtree(path, ignore_errors=True)
        size = sum(value.numel() * value.element_size() for value in tensors.values()) / 1e6
        raise ArtifactError(
            f"the checkpoint of step {step} cannot be written to {path} ({size:,.1f} MB): {error}. {_last(folder)} Make room, "
            "or let the folder be written to, and run the same command again"
        ) from error
    _remove_old(folder, path)


def _remove_old(folder: Path, newest: Path) -> None:
    """Leave `newest` and the finished ones before it, `KEEP` in all.

    Whatever bears a higher number was passed over as damaged, and what has no manifest is what a killed run had begun: neither
    may take the place of one that is whole.
    """
    everything = sorted(folder.glob("step-*"))
    kept = [path for path in everything if path <= newest and (path / artifacts.MANIFEST).exists()][-KEEP:]
    for path in everything:
        if path not in kept:
            shutil.rmtree(path)


def begun(folder: Path) -> bool:
    """Whether there is a checkpoint, be it damaged: one that was being written when its run was killed is none."""
    return any(folder.glob(f"step-*/{artifacts.MANIFEST}"))


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint."""
    return next((path for path, _, problem in _looked_at(folder) if not problem), None)


def _last(folder: Path) -> str:
    found = newest(folder)
    return f"The last good checkpoint: {found}." if found else "There is none yet."


def _looked_at(folder: Path) -> Iterator[tuple[Path, int, str]]:
    """Checkpoints from the newest on, each with its number of updates and what is wrong with it."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            manifest = artifacts.load(path, "checkpoint")
            step = int(manifest.inputs["step"])
            if path.name != f"step-{step:07d}" or STATE not in manifest.files:
                raise ArtifactError(f"{path / artifacts.MANIFEST} is of another checkpoint: delete {path}")
        except (ArtifactError, OSError) as error:
            yield path, 0, str(error)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            yield path, 0, f"{path / artifacts.MANIFEST} cannot be read ({error!r}): delete {path}"
        else:
            yield path, step, ""


def read(folder: Path) -> tuple[int, Tensors, list[str]]:
    """Number of updates and tensors of the newest whole checkpoint (0 and none if there is none); what was wrong with newer."""
    damaged: list[str] = []
    for path, step, problem in _looked_at(folder):
        if not problem:
            return step, load_file(path / STATE), damaged
        damaged.append(problem)
    return 0, {}, damaged


def restore(folder: Path, parameters: Parameters, optimizer: torch.optim.Optimizer) -> tuple[int, list[str]]:
    """Load the newest whole checkpoint.

    Returns:
        The number of finished updates (0 if there is no checkpoint), and what was wrong with newer ones.
    """
    step, tensors, damaged = read(folder)
    if tensors:
        load(tensors, parameters, optimizer)
    return step, damaged


def load(tensors: Tensors, parameters: Parameters, optimizer: torch.optim.Optimizer) -> None:
    """Put weights, optimizer and generators into the state that tensors hold."""
    states: dict[torch.Tensor, dict[str, Any]] = {}
    kept: dict[str, Tensors] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, kind, name = key.split(".", 2)  # no kind of torch's has a dot, and most names have
            kept.setdefault(name, {})[kind] = value
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(parted(tensors[f"weight.{name}"], parameter))
            if found := kept.get(name):
                states[parameter] = {kind: v if kind == "step" else parted(v, parameter) for kind, v in found.items()}
    optimizer.state.clear()
    optimizer.state.update(states)
    torch.random.set_rng_state(tensors["generator"])
    if "cuda_generator" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda_generator"])
