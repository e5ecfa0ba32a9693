"""One training step.

Encode chunk by chunk, differentiate the loss at the embeddings, then carry that gradient into the weights (GradCache,
arXiv:2101.06983). Chunks are made of items, before anything is rendered, so no model tensor is ever sliced. The graphs of as
many chunks as `keep_tokens` allows stay in memory; the others are computed again. Keeping all of them is the plain step; both
give the same gradient. So does a step that runs out of memory: it drops graphs, halves chunks, and goes on.

Several processes divide the batch's items among them: each encodes its share, all learn all vectors, each differentiates the
loss of its share of the queries, and the gradients are added up. What comes out is the gradient of one process on the whole
batch, to rounding; no factor of the number of processes appears anywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hardwon.distributed import World
from hardwon.errors import Diverged
from hardwon.losses import GradientReport, Loss, UnusableRows, gradient_report
from hardwon.losses.targets import NothingToCompare
from hardwon.models import Embedder, ListwiseReranker, Reranker
from hardwon.models.body import trainable
from hardwon.models.memory import Room
from hardwon.training.batches import Batch, ListBatch
from hardwon.training.encoding import Encoding
from hardwon.training.objective import Objective
from hardwon.training.sharded import ShardedEncoding, Shards


@dataclass(frozen=True)
class Memory:
    """How a step spends memory. Where it runs out, a training goes on with smaller numbers and says so.

    Attributes:
        chunk_tokens: tokens of one forward pass, about.
        keep_tokens: tokens whose graph is kept; beyond it chunks are encoded twice. None keeps everything.
        gradient_checkpointing: a layer's inner results are computed again when its gradient is due: a graph takes a
            fraction of the memory, a step about a third longer.
    """

    chunk_tokens: int = 2048
    keep_tokens: int | None = None
    gradient_checkpointing: bool = False

    def room(self) -> Room:
        """For one training: what it learns of the memory there really is, all its steps share."""
        return Room(self.chunk_tokens, self.keep_tokens)


Model = Embedder | Reranker | ListwiseReranker
Watch = Callable[[GradientReport | None], None]


def _encoding(
    model: Model, inputs: Sequence[Any], memory: Memory | Room, world: World, shards: Shards | None
) -> Encoding | ShardedEncoding:
    of: Any = model  # an embedder's inputs are items, a reranker's pairs of them, or lists
    if shards is not None:
        return ShardedEncoding(
            lambda rows: shards.whole([inputs[n] for n in rows]),
            [of.cost(one) for one in inputs],
            [of.kind(one) for one in inputs],
            memory.room() if isinstance(memory, Memory) else memory,
            model.body.model.device,
            world,
        )
    return Encoding(
        lambda rows: of.forward([inputs[n] for n in rows]),
        lambda n: of.name(inputs[n]),
        [of.cost(one) for one in inputs],
        memory.room() if isinstance(memory, Memory) else memory,
        trainable(model.module),
        model.body.model.device,
        world,
    )


def embedder_step(
    model: Embedder,
    loss: Loss | Objective,
    batch: Batch,
    memory: Memory | Room,
    world: World | None = None,
    watch: Watch | None = None,
    shards: Shards | None = None,
) -> Float[Tensor, ""]:
    """Add the gradient of `loss` on all queries x all candidates to the weights; returns the loss.

    Args:
        model: its weights get the gradient.
        loss: a loss, or one with rules, widths and temperature.
        batch: what is encoded.
        memory: what may be held; the room of a training, where several steps share it.
        world: the processes that share the work; all of them call this with the same batch.
        watch: told where the gradient goes; None where that cannot be said.
        shards: where the processes hold a part of the weights each.

    Raises:
        Diverged: vectors or a loss that are not finite; no gradient was added.
        ModelError: an item too large for memory; names it.
    """
    objective = loss if isinstance(loss, Objective) else Objective(loss)
    world = world or World()
    items = list({item.key: item for item in (*batch.queries, *batch.candidates)}.values())
    place = {item.key: n for n, item in enumerate(items)}
    encoding = _encoding(model, items, memory, world, shards)
    chunks = encoding.forward()
    vectors = encoding.gather(chunks, (int(model.dim),))
    asked, offered = ([place[item.key] for item in side] for side in (batch.queries, batch.candidates))
    keys = [query.key for query in batch.queries]
    with torch.autocast(vectors.device.type, enabled=False):
        # All processes hold the same vectors, so all of them stop here or none does.
        broken = ~torch.isfinite(vectors).all(dim=1)
        if bool(broken.any()):
            bad = [key for key, n in zip(keys, asked, strict=True) if bool(broken[n])]
            raise Diverged(f"{int(broken.sum())} vectors are not finite", batch.number, bad or keys)
        value, gradient = _differentiated(objective, vectors, (asked, offered), batch, world, keys)
        if watch:
            watch(objective.report(vectors, asked, offered, batch.targets.to(vectors.device)))
    encoding.backward(chunks, gradient)
    _sum_gradients(model, objective, world, shards)
    return value.detach()


def _differentiated(
    objective: Objective,
    vectors: Tensor,
    sides: tuple[Sequence[int], Sequence[int]],
    batch: Batch,
    world: World,
    keys: Sequence[str],
) -> tuple[Tensor, Tensor]:
    try:
        value, gradient = objective.slope(vectors, *sides, batch.targets.to(vectors.device), world)
    except UnusableRows as error:
        advice = _nothing_left(batch) if isinstance(error, NothingToCompare) else ""
        raise Diverged(error.what, batch.number, [keys[row] for row in error.rows], advice) from error
    if not bool(torch.isfinite(value)):
        raise Diverged(f"the loss is {value.item()}", batch.number, keys)
    return value, gradient


def _nothing_left(batch: Batch) -> str:
    """Why a batch may have nothing to compare, and what to do."""
    where = f" of source {batch.source!r}" if batch.source else ""
    return (
        f"Its {len(batch.queries)} queries{where} share {len(batch.candidates)} candidates, and every one of these counts as "
        "right for every query. If a judge has said so, mine with a smaller beta or a better judge; else leave these examples "
        "out, or give them negatives"
    )


def reranker_step(
    model: Reranker | ListwiseReranker,
    loss: Loss | Objective,
    batch: ListBatch,
    memory: Memory | Room,
    world: World | None = None,
    watch: Watch | None = None,
    shards: Shards | None = None,
) -> Float[Tensor, ""]:
    """Add the gradient of `loss` on every query's own list to the weights; returns the loss. See `embedder_step`."""
    objective = loss if isinstance(loss, Objective) else Objective(loss)
    world = world or World()
    whole = isinstance(model, ListwiseReranker)
    encoding = _encoding(model, batch.lists if whole else batch.pairs, memory, world, shards)
    chunks = encoding.forward()
    odds = encoding.gather(chunks, (model.listing.window,) if whole else ()).requires_grad_()
    with torch.autocast(odds.device.type, enabled=False):
        # Lists are short: every process computes all of them, so that none is ever alone with an error.
        filled = batch.filled.to(odds.device)
        scores = odds[:, : filled.shape[1]] if whole else odds.new_zeros(filled.shape).masked_scatter(filled, odds)
        targets = batch.targets.to(odds.device)
        if objective.rules:
            targets = objective.rules(scores, targets)
        try:
            value = objective.loss(scores, targets)
        except UnusableRows as error:
            raise Diverged(error.what, batch.number, [batch.keys[row] for row in error.rows]) from error
        if not bool(torch.isfinite(value)):
            raise Diverged(f"the loss is {value.item()}", batch.number, batch.keys)
        (gradient,) = torch.autograd.grad(value, odds)
        if watch:
            watch(gradient_report(objective.loss, scores, targets))
    encoding.backward(chunks, gradient)
    _sum_gradients(model, objective, world, shards)
    return value.detach()


def _sum_gradients(model: Model, objective: Objective, world: World, shards: Shards | None) -> None:
    own = [objective.log_temperature] if objective.log_temperature is not None else []
    if shards is not None:  # the others' gradients came along with the backward pass
        shards.forget_unused(world)
        world.sum_gradients(own)
        return
    world.sum_gradients([*trainable(model.module), *own])
