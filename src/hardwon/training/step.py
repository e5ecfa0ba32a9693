"""One training step.

Encode chunk by chunk, differentiate the loss at the embeddings, then carry that gradient into the weights (GradCache,
arXiv:2101.06983). Chunks are made of items, before anything is rendered, so no model tensor is ever sliced. The graphs of as
many chunks as `keep_tokens` allows stay in memory; the others are computed again. Keeping all of them is the plain step; both
give the same gradient.

Several processes divide the batch's items among them: each encodes its share, all learn all vectors, each differentiates the
loss of its share of the queries, and the gradients are added up. What comes out is the gradient of one process on the whole
batch, to rounding; no factor of the number of processes appears anywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hardwon.distributed import World
from hardwon.errors import Diverged
from hardwon.losses import GradientReport, Loss, UnusableRows, gradient_report
from hardwon.models import Embedder, Reranker
from hardwon.models.body import plan, trainable
from hardwon.training.batches import Batch, ListBatch
from hardwon.training.objective import Objective


@dataclass(frozen=True)
class Memory:
    """How a step spends memory.

    Attributes:
        chunk_tokens: tokens of one forward pass, about.
        keep_tokens: tokens whose graph is kept; beyond it chunks are encoded twice. None keeps everything.
    """

    chunk_tokens: int = 2048
    keep_tokens: int | None = None


Watch = Callable[[GradientReport | None], None]
States = tuple[Tensor, ...]


@dataclass(frozen=True)
class _Chunk:
    rows: list[int]  # of all items
    output: Tensor  # with a graph if kept, else without
    states: States | None  # of the generators before the pass, if it has to be repeated


def _states(device: torch.device) -> States:
    host = torch.random.get_rng_state()
    return (host, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (host,)


def _set_states(states: States, device: torch.device) -> None:
    torch.random.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


@dataclass(frozen=True)
class _Encoding:
    """How this process encodes its share of a batch's items."""

    run: Callable[[list[int]], Tensor]
    costs: Sequence[int]
    memory: Memory
    device: torch.device
    world: World

    def forward(self) -> list[_Chunk]:
        chunks, kept = [], 0
        mine = self.world.share(self.costs)
        for places in plan([self.costs[n] for n in mine], self.memory.chunk_tokens):
            rows = [mine[place] for place in places]
            kept += len(rows) * max(self.costs[n] for n in rows)
            if self.memory.keep_tokens is None or kept <= self.memory.keep_tokens:
                chunks.append(_Chunk(rows, self.run(rows), None))
                continue
            states = _states(self.device)
            with torch.no_grad():
                chunks.append(_Chunk(rows, self.run(rows), states))
        return chunks

    def gather(self, chunks: Sequence[_Chunk], shape: tuple[int, ...]) -> Tensor:
        """The outputs of all items, from all processes, in float32 and without a graph."""
        outputs = torch.zeros((len(self.costs), *shape), dtype=torch.float32, device=self.device)
        for chunk in chunks:
            outputs[chunk.rows] = chunk.output.detach().float()
        return self.world.sum(outputs)  # everyone else's rows are zero

    def backward(self, chunks: Sequence[_Chunk], gradient: Tensor) -> None:
        for chunk in chunks:
            part = gradient[chunk.rows]
            if chunk.states is None:
                chunk.output.backward(part.to(chunk.output.dtype))
                continue
            now = _states(self.device)
            _set_states(chunk.states, self.device)  # the same dropout as in the first pass
            self.run(chunk.rows).backward(part.to(chunk.output.dtype))
            _set_states(now, self.device)


def embedder_step(
    model: Embedder,
    loss: Loss | Objective,
    batch: Batch,
    memory: Memory,
    world: World | None = None,
    watch: Watch | None = None,
) -> Float[Tensor, ""]:
    """Add the gradient of `loss` on all queries x all candidates to the weights; returns the loss.

    Args:
        model: its weights get the gradient.
        loss: a loss, or one with rules, widths and temperature.
        batch: what is encoded.
        memory: what may be held.
        world: the processes that share the work; all of them call this with the same batch.
        watch: told where the gradient goes; None where that cannot be said.

    Raises:
        Diverged: vectors or a loss that are not finite; no gradient was added.
    """
    objective = loss if isinstance(loss, Objective) else Objective(loss)
    world = world or World()
    items = list({item.key: item for item in (*batch.queries, *batch.candidates)}.values())
    place = {item.key: n for n, item in enumerate(items)}

    def run(rows: list[int]) -> Tensor:
        return model.forward([items[n] for n in rows])

    encoding = _Encoding(run, [model.cost(item) for item in items], memory, model.body.model.device, world)
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
    _sum_gradients(model, objective, world)
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
        raise Diverged(error.what, batch.number, [keys[row] for row in error.rows]) from error
    if not bool(torch.isfinite(value)):
        raise Diverged(f"the loss is {value.item()}", batch.number, keys)
    return value, gradient


def reranker_step(
    model: Reranker,
    loss: Loss | Objective,
    batch: ListBatch,
    memory: Memory,
    world: World | None = None,
    watch: Watch | None = None,
) -> Float[Tensor, ""]:
    """Add the gradient of `loss` on every query's own list to the weights; returns the loss. See `embedder_step`."""
    objective = loss if isinstance(loss, Objective) else Objective(loss)
    world = world or World()

    def run(rows: list[int]) -> Tensor:
        return model.forward([batch.pairs[n] for n in rows])

    encoding = _Encoding(run, [model.cost(pair) for pair in batch.pairs], memory, model.body.model.device, world)
    chunks = encoding.forward()
    odds = encoding.gather(chunks, ()).requires_grad_()
    with torch.autocast(odds.device.type, enabled=False):
        # Lists are short: every process computes all of them, so that none is ever alone with an error.
        scores = odds.new_zeros(batch.filled.shape).masked_scatter(batch.filled.to(odds.device), odds)
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
    _sum_gradients(model, objective, world)
    return value.detach()


def _sum_gradients(model: Embedder | Reranker, objective: Objective, world: World) -> None:
    own = [objective.log_temperature] if objective.log_temperature is not None else []
    world.sum_gradients([*trainable(model.module), *own])
