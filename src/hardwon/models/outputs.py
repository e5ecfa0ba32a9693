"""What a model gives for many items or pairs: checked first, equal ones computed once, in batches filled by tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hardwon.errors import BadItem, BadItems, ModelError
from hardwon.items import Item
from hardwon.models.memory import Room
from hardwon.models.preflight import decoding, refuse
from hardwon.models.scorer import Pair
from hardwon.progress import bar

ENCODE_TOKENS = 2048  # of one forward pass without a graph
WASTE = 0.15  # share of a row that may be padding


@torch.no_grad()
def outputs(
    model: Any, rows: Sequence[Item] | Sequence[Pair], width: tuple[int, ...], *, doing: str, unit: str, progress: str
) -> np.ndarray:
    """What `model.forward` makes of each row, [n, *width], float32.

    Args:
        model: an `Embedder`, whose rows are items, or a `Reranker`, whose rows are pairs.
        rows: what it is shown.
        width: shape of the output of one row.
        doing: the work, for the warning that memory ran out.
        unit: what a row is, in the plural.
        progress: name of the work in a bar; "" shows none.

    Raises:
        BadItems: items that cannot be used, before anything is computed, or whose output is not finite; names them all.
        ModelError: a row that cannot be read, is too large for memory, or (a pair) whose output is not finite; names it.
    """
    refuse(model.body, [item for row in rows for item in _items(row)])
    keys = [tuple(item.key for item in _items(row)) for row in rows]
    place = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    distinct = list(dict(zip(keys, rows, strict=True)).values())
    made, room = np.zeros((len(distinct), *width), dtype=np.float32), Room(ENCODE_TOKENS, waste=WASTE)
    parts = [_items(row) for row in distinct]
    with decoding(model.body, [item for part in parts for item in part]), model.evaluating():
        model.body.prepare(parts, bool(progress))
        with bar(progress, len(distinct), unit, shown=bool(progress)) as advance:
            for chunk, values in room.each(
                range(len(distinct)),
                [model.cost(row) for row in distinct],
                lambda some: model.forward([distinct[n] for n in some]).cpu().numpy(),
                lambda n: model.name(distinct[n]),
            ):
                made[chunk] = values
                advance(len(chunk))
    room.tell(f"memory ran out while {doing}: went on with chunks of {room.tokens} tokens, which gives the same numbers")
    finite = np.isfinite(made).all(axis=tuple(range(1, made.ndim)))
    if not finite.all():
        wrong = [distinct[n] for n in np.flatnonzero(~finite)]
        if all(isinstance(row, Item) for row in wrong):
            raise BadItems([BadItem(item, "the model gives numbers that are not finite") for item in wrong], str(len(distinct)))
        raise ModelError(f"the model gives numbers that are not finite, first for {model.name(distinct[int(finite.argmin())])}")
    return made[[place[key] for key in keys]]


def _items(row: Item | Pair) -> tuple[Item, ...]:
    return row if isinstance(row, tuple) else (row,)
