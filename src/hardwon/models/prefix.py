"""What the prompts of one query begin with, computed once: the language model's keys and values are kept and used again."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hardwon.models.memory import out_of_memory
from hardwon.models.prompts import Features

GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}


class Apart(Exception):
    """Prompts that cannot be taken apart into a common beginning and the rest; says why."""


@contextmanager
def going_on() -> Iterator[None]:
    """Around code of a model that is given a beginning to go on from: what it raises if it cannot do that is `Apart`.

    There is no one exception for it: models without such a cache, or with one of their own, fail over a missing argument,
    attribute, key or shape. Nothing is lost by taking them all for the same, since the whole prompts are read then, and what
    is really broken fails there again.
    """
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise
        raise Apart(f"{type(error).__name__}: {error}".splitlines()[0][:200]) from error


def common(rows: Sequence[Sequence[int]]) -> int:
    """How many elements all rows begin with.

    >>> common([[1, 2, 3], [1, 2], [1, 2, 4]])
    2
    """
    shortest = min(len(row) for row in rows)
    return next((n for n in range(shortest) if len({row[n] for row in rows}) > 1), shortest)


class Beginning:
    """The common beginning of the prompts of one query, all of one kind.

    Args:
        plain: tokens of the prompts before pictures are put in.
        pictures: pictures and videos of the query.
        placeholders: ids of the tokens that stand for a picture or a video.

    Raises:
        Apart: nothing in common that could be used.
    """

    def __init__(self, plain: Sequence[Sequence[int]], pictures: int, placeholders: set[int]):
        first = plain[0]
        places = [n for n, token in enumerate(first) if token in placeholders]
        if len(places) < pictures:
            raise Apart("its pictures stand for themselves by no token of their own")
        # A candidate's pictures look alike as tokens; the last token of all is where the answer is read.
        end = min(common(plain), min(len(row) for row in plain) - 1, *places[pictures : pictures + 1])
        start = places[pictures - 1] + 1 if pictures else 0
        if end <= start:
            raise Apart("nothing but the query's pictures is the same in all prompts")
        self._words, self._placeholders = first[start:end], placeholders if pictures else set()
        self._ids: list[int] = []
        self._cache: Any = None

    def end(self, ids: Sequence[int]) -> int:
        """Where the beginning ends in a prompt with its pictures put in.

        Raises:
            Apart: it cannot be found.
        """
        words = self._words
        if not self._placeholders:
            return len(words)
        # The same words may stand before the pictures, in an instruction, or once more in the candidate.
        seen = next((n for n, token in enumerate(ids) if token in self._placeholders), len(ids))
        for n in range(seen, len(ids) - len(words)):
            if ids[n] == words[0] and ids[n : n + len(words)] == words:
                return n + len(words)
        raise Apart("the words between the query's pictures and the candidate do not stand behind a picture")

    def known(self, ids: list[int]) -> Any:
        """What was kept of just these tokens, to be written to; None if they are new."""
        return copy.deepcopy(self._cache) if ids == self._ids else None

    def keep(self, ids: list[int], cache: Any) -> None:
        """Keep what the model made of these tokens."""
        self._ids, self._cache = ids, cache


def positions(model: Any, features: Features) -> Tensor:
    """Position of every token, [n t] or [3 n t]: also where pictures have positions in three dimensions."""
    for part in (model, model.base_model):
        count: Any = getattr(part, "get_rope_index", None)
        if count is not None and any(grid in features for grid in GRIDS.values()):
            asked = inspect.signature(count).parameters
            return count(**{name: value for name, value in features.items() if name in asked})[0]
    rows, length = features["input_ids"].shape
    return torch.arange(length, device=features["input_ids"].device).expand(rows, length)


def apart(features: Features, where: Tensor, end: int, counts: Sequence[int]) -> tuple[Features, Features]:
    """Inputs of the beginning, one row, and of the rest of every row.

    Args:
        features: inputs of whole prompts of one kind.
        where: positions of their tokens.
        end: tokens of the beginning.
        counts: pictures and videos of the query, then of each candidate.

    Raises:
        Apart: inputs of pictures that say nothing of which picture they belong to.
    """
    shape = features["input_ids"].shape
    first: Features = {"position_ids": where[..., :1, :end]}
    rest: Features = {"position_ids": where[..., end:]}
    for name, value in features.items():
        if value.shape == shape and not value.is_floating_point():
            first[name] = value[:1, :end]
            rest[name] = value if name == "attention_mask" else value[:, end:]
            continue
        kind = "video" if "video" in name or name.startswith("second_per") else "image"
        of_query, of_candidate = counts[kind == "video"], counts[2 + (kind == "video")]
        if name == "batch_num_images":
            # Of LLaVA-OneVision. It only asks whether a picture is alone in its prompt, as it is seen in tiles then.
            alone = of_query + of_candidate == 1
            sides = [value.new_ones(n) if alone else value.new_tensor([max(2, n)]) for n in (of_query, shape[0] * of_candidate)]
        else:
            sides = _by_picture(name, value, shape[0], (of_query, of_candidate), features.get(GRIDS[kind]))
        for side, part, count in zip((first, rest), sides, (of_query, of_candidate), strict=True):
            if count:
                side[name] = part
    return first, rest


def _by_picture(name: str, value: Tensor, rows: int, counts: tuple[int, int], grid: Tensor | None) -> list[Tensor]:
    """What belongs to the pictures of the query (in the first row), and of all candidates."""
    each = sum(counts)
    patches = [1] * (rows * each) if grid is None or len(value) == rows * each else grid.prod(-1).tolist()
    if len(value) != sum(patches) or len(patches) != rows * each:
        raise Apart(f"{name} cannot be divided among the pictures")
    parts = value.split(patches)
    theirs = [part for n, part in enumerate(parts) if n % each >= counts[0]]
    return [torch.cat(some) if some else value[:0] for some in (parts[: counts[0]], theirs)]


def joined(cache: Any, rows: int) -> Any:
    """The same keys and values for several rows."""
    if not hasattr(cache, "batch_repeat_interleave"):
        raise Apart("its architecture keeps no keys and values")
    if rows > 1:
        cache.batch_repeat_interleave(rows)
    return cache
