"""One training step.

Encode chunk by chunk, differentiate the loss at the embeddings, then carry that gradient into the weights (GradCache,
arXiv:2101.06983). Chunks are made of items, before anything is rendered, so no model tensor is ever sliced. The graphs of as
many chunks as `keep_tokens` allows stay in memory; the others are computed again. Keeping all of them is the plain step; both
give the same gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hardwon.errors import Diverged
from hardwon.losses import Loss
from hardwon.models import Embedder, Reranker
from hardwon.models.body import plan
from hardwon.training.batches import Batch, ListBatch


@dataclass(frozen=True)
class Memory:
    """How a step spends memory.

    Attributes:
        chunk_tokens: tokens of one forward pass, about.
        keep_tokens: tokens whose graph is kept; beyond it chunks are encoded twice. None keeps everything.
    """

    chunk_tokens: int = 2048
    keep_tokens: int | None = None


@dataclass(frozen=True)
class _Chunk:
    rows: list[int]
    output: Tensor  # with a graph if kept, else without
    state: Tensor | None  # generator state before the pass, if it has to be repeated


def _forward(run: Callable[[list[int]], Tensor], costs: Sequence[int], memory: Memory) -> list[_Chunk]:
    chunks, kept = [], 0
    for rows in plan(costs, memory.chunk_tokens):
        kept += len(rows) * max(costs[n] for n in rows)
        if memory.keep_tokens is None or kept <= memory.keep_tokens:
            chunks.append(_Chunk(rows, run(rows), None))
            continue
        state = torch.random.get_rng_state()
        with torch.no_grad():
            chunks.append(_Chunk(rows, run(rows), state))
    return chunks


def _backward(chunks: Sequence[_Chunk], run: Callable[[list[int]], Tensor], gradient: Tensor) -> None:
    for chunk in chunks:
        part = gradient[chunk.rows]
        if chunk.state is None:
            chunk.output.backward(part.to(chunk.output.dtype))
            continue
        now = torch.random.get_rng_state()
        torch.random.set_rng_state(chunk.state)  # the same dropout as in the first pass
        run(chunk.rows).backward(part.to(chunk.output.dtype))
        torch.random.set_rng_state(now)


def _gather(chunks: Sequence[_Chunk], total: int) -> Tensor:
    first = chunks[0].output
    outputs = torch.empty((total, *first.shape[1:]), dtype=torch.float32, device=first.device)
    for chunk in chunks:
        outputs[chunk.rows] = chunk.output.detach().float()
    return outputs.requires_grad_()


def _value(loss: Loss, scores: Float[Tensor, "q c"], targets: Any, step: int, keys: Sequence[str]) -> Tensor:
    try:
        value = loss(scores, targets)
    except ValueError as error:
        raise Diverged(str(error), step, keys) from error
    if not bool(torch.isfinite(value)):
        raise Diverged(f"the loss is {value.item()}", step, keys)
    return value


def embedder_step(model: Embedder, loss: Loss, batch: Batch, memory: Memory) -> Float[Tensor, ""]:
    """Add the gradient of `loss` on all queries x all candidates to the weights; returns the loss.

    Raises:
        Diverged: scores or a loss that are not finite; no gradient was added.
    """
    place: dict[str, int] = {}
    items = list({item.key: item for item in (*batch.queries, *batch.candidates)}.values())
    for n, item in enumerate(items):
        place[item.key] = n

    def run(rows: list[int]) -> Tensor:
        return model.forward([items[n] for n in rows])

    chunks = _forward(run, [model.cost(item) for item in items], memory)
    vectors = _gather(chunks, len(items))
    asked, offered = ([place[item.key] for item in side] for side in (batch.queries, batch.candidates))
    with torch.autocast(vectors.device.type, enabled=False):
        value = _value(loss, vectors[asked] @ vectors[offered].T, batch.targets, batch.number, [q.key for q in batch.queries])
        (gradient,) = torch.autograd.grad(value, vectors)
    _backward(chunks, run, gradient)
    return value.detach()


def reranker_step(model: Reranker, loss: Loss, batch: ListBatch, memory: Memory) -> Float[Tensor, ""]:
    """Add the gradient of `loss` on every query's own list to the weights; returns the loss."""

    def run(rows: list[int]) -> Tensor:
        return model.forward([batch.pairs[n] for n in rows])

    chunks = _forward(run, [model.cost(pair) for pair in batch.pairs], memory)
    odds = _gather(chunks, len(batch.pairs))
    with torch.autocast(odds.device.type, enabled=False):
        scores = odds.new_zeros(batch.filled.shape).masked_scatter(batch.filled.to(odds.device), odds)
        value = _value(loss, scores, batch.targets, batch.number, batch.keys)
        (gradient,) = torch.autograd.grad(value, odds)
    _backward(chunks, run, gradient)
    return value.detach()
