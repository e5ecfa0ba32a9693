"""Items in the words of people who use sentence-transformers alone, but always explicit: text is never a path or a URL."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hardwon.items import Item
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
