"""Items in the words of people who use sentence-transformers alone, but always explicit: text is never a path or a URL."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hardwon.items import Item
from hardwon.models.loading import ENDLESS, as_it_is
from hardwon.models.small import settle_pixels
from hardwon.pictures import open_picture


def plainly(item: Item) -> dict[str, Any]:
    """An item without an instruction as `encode` takes it; the parts in hardwon's order, since models are shown that order."""
    row: dict[str, Any] = {}
    if item.images:
        pictures = [open_picture(picture) for picture in item.images]
        row["image"] = pictures if len(pictures) > 1 else pictures[0]
    if item.video:
        row["video"] = [open_picture(frame) for frame in item.video]
    return row | ({"text": item.text} if item.text else {})


def load_plainly(path: str | Path, device: str | None) -> tuple[Any, list[str]]:
    """A `SentenceTransformer` as people load it who do not use hardwon, and what to tell them; errors as `as_it_is`."""
    from sentence_transformers import SentenceTransformer

    model, notes = as_it_is(SentenceTransformer, path, device), []
    if not model.max_seq_length or model.max_seq_length >= ENDLESS:
        notes.append(
            "Its tokenizer names no maximum length. Plain SentenceTransformer(path) cuts nothing, so a long text may break it; "
            "hardwon takes the number of positions of the language model, and keeps that in what it saves."
        )
    if settle_pixels(model):
        notes.append(
            "hardwon has PIL resize its pictures. Where torchvision is installed, as it is here, SentenceTransformer(path) has "
            "torchvision do it, which gives slightly other vectors. The rows are about SentenceTransformer with PIL."
        )
    return model, notes


def encode_plainly(model: Any, items: Sequence[Item], size: int, fused: bool) -> np.ndarray:
    """Vectors [n d] of a `SentenceTransformer`, by its own `encode`.

    Args:
        model: the model.
        items: what it is shown; those of a kind that has a prompt of its own are shown with that.
        size: items of a batch.
        fused: whether it reads texts and pictures in one call.
    """
    groups: dict[tuple[bool, str], list[int]] = {}
    for n, item in enumerate(items):
        name = item.modality if model.prompts.get(item.modality) else ""
        groups.setdefault((not fused and bool(item.images), name), []).append(n)
    made: dict[int, np.ndarray] = {}
    for (_, name), chosen in groups.items():
        rows = [plainly(items[n]) for n in chosen]
        vectors = model.encode(rows, prompt_name=name or None, batch_size=size, show_progress_bar=False)
        made.update(zip(chosen, vectors, strict=True))
    return np.stack([made[n] for n in range(len(items))])
