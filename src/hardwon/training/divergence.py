"""Where a training broke: which weights, or which part of the model, first give a number that is not finite."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hardwon.errors import Diverged
from hardwon.models import ListwiseReranker, Reranker
from hardwon.training import checkpoint

AT_ONCE = 8  # items of one pass, while looking


class _FoundError(Exception):
    """Ends the pass at the first module whose output is not finite."""


def explained(error: Diverged, model: Any, batch: Sequence[Any], out: Path | None) -> Diverged:
    """The error with the place where it began and the checkpoint that a run can go on from.

    Args:
        error: as a step raised it.
        model: with the weights that it had.
        batch: alone in a list; an empty list if there was none.
        out: folder of the run.
    """
    place = first_bad(model, batch[0]) if batch else ""
    kept = checkpoint.newest(out / "checkpoint") if out else None
    last = f"The last good checkpoint: {kept}." if kept else "There is no checkpoint yet."
    return Diverged(error.what, error.step, error.keys, " ".join(part for part in (place, error.advice, last) if part))


@torch.no_grad()
def first_bad(model: Any, batch: Any) -> str:
    """A sentence on where numbers stop being finite; "" where nobody can say."""
    for name, parameter in model.module.named_parameters():
        if hasattr(parameter, "to_local"):  # of which this process holds a part only
            return ""
        if not bool(torch.isfinite(parameter).all()):
            return f"The weights {name} are not finite."
    with contextlib.ExitStack() as stack:
        for name, part in model.module.named_modules():
            if not next(part.children(), None):
                stack.callback(part.register_forward_hook(_watching(name)).remove)
        try:
            inputs = _inputs(model, batch)
            with model.evaluating():
                for start in range(0, len(inputs), AT_ONCE):
                    model.forward(inputs[start : start + AT_ONCE])
        except _FoundError as found:
            return f"The first module whose output is not finite: {found}."
        except Exception:  # what a broken model does more is no news: the error that is explained is on its way
            return ""
    return "All modules give finite numbers for this batch: it is the loss or a gradient that overflows."


def _watching(name: str) -> Any:
    def look(_part: nn.Module, _given: Any, made: Any) -> None:
        for value in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise _FoundError(name)

    return look


def _inputs(model: Any, batch: Any) -> Sequence[Any]:
    if isinstance(model, ListwiseReranker):
        return batch.lists
    if isinstance(model, Reranker):
        return batch.pairs
    return list({item.key: item for item in (*batch.queries, *batch.candidates)}.values())
