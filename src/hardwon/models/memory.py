"""Memory that runs out: the work goes on in smaller pieces with the same result, and the user is told once.

Also gradient checkpointing, which needs less memory from the start.
"""

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch

from hardwon.errors import ModelError, TooLarge

T = TypeVar("T")
ENOUGH = 256  # tokens from which on a forward pass costs more than the calls that it consists of
# Tokens that a new chunk has to save. On two CPU cores a pass costs 32 before it has read one (8 ms, since all of MiniLM's
# weights come from memory once more; a token takes 0.28 ms), and tokens are guessed from characters.
CALL = 64
# What torch says in a plain RuntimeError: its allocator on Linux and on Windows, a driver or MPS, cuBLAS.
PHRASES = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or off it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in PHRASES)


def attempted(work: Callable[[], T]) -> list[T]:
    """What `work` returns, alone in a list; an empty list if memory ran out, and what the work had held is free again."""
    try:
        return [work()]
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    # Only out here the error is gone, and with it the frames that held on to tensors.
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return []


def plan(costs: Sequence[int], budget: int, waste: float = 1.0) -> list[list[int]]:
    """Positions grouped into chunks, longest first, so that rows x longest row stays within the budget.

    Equal costs stay in order, so the plan depends on nothing but the costs.

    Args:
        costs: tokens of the items.
        budget: tokens of a chunk, padding included.
        waste: share of a row that may be padding, once a chunk holds `ENOUGH` tokens; more starts a new chunk, if that saves
            more than `CALL` tokens.

    >>> plan([3, 9, 4], 9)
    [[1], [2, 0]]
    """
    chunks: list[list[int]] = []
    longest = 0
    for place, n in enumerate(sorted(range(len(costs)), key=lambda n: -costs[n])):
        filled = len(chunks[-1]) * longest if chunks else 0
        full = not chunks or filled + longest > budget
        if not full and filled >= ENOUGH and costs[n] < (1 - waste) * longest:
            fit = min(len(costs) - place, (budget - filled) // longest)  # none of them longer than this one
            full = fit * (longest - costs[n]) > CALL
        if full:
            chunks.append([])
            longest = costs[n]
        chunks[-1].append(n)
    return chunks


class Room:
    """Tokens that memory holds: as many as hoped for until it runs out, then fewer, for as long as this object lives.

    Args:
        tokens: of one forward pass.
        keep: tokens whose graph stays until the backward pass; None: everything's.
        waste: see `plan`.

    Attributes:
        tokens: see above.
        keep: see above.
    """

    def __init__(self, tokens: int, keep: int | None = None, waste: float = 1.0):
        self.tokens, self.keep, self._waste = tokens, keep, waste
        self._hoped, self._told = (tokens, keep), False

    def chunks(self, rows: Sequence[int], costs: Sequence[int]) -> list[list[int]]:
        """Some of the items in chunks that fit; see `plan`."""
        return [[rows[place] for place in places] for places in plan([costs[n] for n in rows], self.tokens, self._waste)]

    def each(
        self,
        rows: Sequence[int],
        costs: Sequence[int],
        work: Callable[[list[int]], T],
        name: Callable[[int], str],
        give_up: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[list[int], T]]:
        """Chunks of items and what `work` makes of each.

        Args:
            rows: positions of items.
            costs: tokens of all items.
            work: done on one chunk; again on smaller ones if memory ran out.
            name: of an item, for errors.
            give_up: sets other memory free, before the chunk is made smaller; False if there is none.

        Raises:
            TooLarge: an item that does not fit by itself.
        """
        todo = self.chunks(rows, costs)
        while todo:
            made = attempted(partial(work, todo[0]))
            if made:
                yield todo.pop(0), made.pop()
            elif not give_up():
                self.shrink(todo[0], costs, name)
                todo = self.chunks([n for chunk in todo for n in chunk], costs)

    def shrink(self, rows: Sequence[int], costs: Sequence[int], name: Callable[[int], str]) -> None:
        """From now on chunks are half as large as this one, which did not fit.

        Raises:
            TooLarge: it was a single item.
        """
        if len(rows) == 1:
            raise TooLarge(
                f"{name(rows[0])} comes to about {costs[rows[0]]} tokens and does not fit into memory by itself: make its "
                "pictures smaller (max_pixels), compute in lower precision (bf16) or, in training, set "
                "Memory(gradient_checkpointing=True)"
            )
        self.tokens = len(rows) * max(costs[n] for n in rows) // 2

    def tell(self, what: str) -> None:
        """Warn if memory has run out; of one room once."""
        if (self.tokens, self.keep) != self._hoped and not self._told:
            self._told = True
            warnings.warn(what, stacklevel=3)


@contextlib.contextmanager
def checkpointed(model: Any, on: bool = True) -> Iterator[None]:
    """Gradient checkpointing within the block: layers keep what they were given and run again when their gradient is due.

    Args:
        model: of transformers, in training mode (in evaluation nothing is kept anyway); see `Body.transformer`.
        on: False does nothing. Nor is anything done to a model that the user has switched already.

    Raises:
        ModelError: an architecture that cannot.
    """
    if not on or any(getattr(part, "gradient_checkpointing", False) for part in getattr(model, "modules", list)()):
        yield
        return
    try:
        _switch(model, "enable", {"use_reentrant": False})
    except (AttributeError, ValueError) as error:
        kind = type(model).__name__ if isinstance(model, torch.nn.Module) else "model that is not of transformers"
        advice = "set Memory(gradient_checkpointing=False), and smaller chunk_tokens if memory is short"
        raise ModelError(f"gradient checkpointing does not work on a {kind}: {advice}") from error
    # transformers also makes the output of frozen word embeddings require a gradient, which only reentrant checkpoints need.
    model.disable_input_require_grads()
    try:
        yield
    finally:
        _switch(model, "disable")


def _switch(model: Any, how: str, *settings: dict[str, Any]) -> None:
    # Renamed between transformers 5.20, where the second name is the only one, and 5.23, where it warns.
    name = next((kind for kind in ("activation", "gradient") if hasattr(model, f"{kind}_checkpointing_{how}")), "gradient")
    getattr(model, f"{name}_checkpointing_{how}")(*settings)
