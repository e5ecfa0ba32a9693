"""One training step.

Encode chunk by chunk, differentiate the loss at the embeddings, then carry that gradient into the weights (GradCache,
arXiv:2101.06983). Chunks are made of items, before anything is rendered, so no model tensor is ever sliced. The graphs of as
many chunks as `keep_tokens` allows stay in memory; the others are computed again. Keeping all of them is the plain step; both
give the same gradient. So does a step that runs out of memory: it drops graphs, halves chunks, and goes on.

Several processes divide the batch's items among them: each encodes its share, all learn all vectors, each differentiates the
loss of its share of the queries, and the gradients are added up. What comes out is the gradient of one process on the whole
batch, to rounding; no factor of the number of processes appears anywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hardwon.distributed import World
from hardwon.errors import Diverged, ModelError
from hardwon.losses import GradientReport, Loss, UnusableRows, gradient_report
from hardwon.models import Embedder, ListwiseReranker, Reranker
from hardwon.models.body import trainable
from hardwon.models.memory import Room, attempted
from hardwon.training.batches import Batch, ListBatch
from hardwon.training.objective import Objective


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
States = tuple[Tensor, ...]


@dataclass(frozen=True)
class _Chunk:
    rows: list[int]  # of all items
    output: Tensor  # with a graph if kept, else without
    kept: bool
    states: States  # of the generators before the pass, to repeat it

    def dropped(self) -> "_Chunk":
        """Without its graph."""
        return replace(self, output=self.output.detach(), kept=False)


def _states(device: torch.device) -> States:
    host = torch.random.get_rng_state()
    return (host, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (host,)


def _set_states(states: States, device: torch.device) -> None:
    torch.random.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


@dataclass(frozen=True)
class _Encoding:
    """How this process encodes its share of a batch's items.

    Between two collectives of a step no process waits for another, so each may run out of memory and mend it alone.
    """

    run: Callable[[list[int]], Tensor]
    name: Callable[[int], str]
    costs: Sequence[int]
    room: Room
    parameters: Sequence[nn.Parameter]
    device: torch.device
    world: World

    def forward(self) -> list[_Chunk]:
        chunks: list[_Chunk] = []

        def encode(rows: list[int]) -> _Chunk:
            states = _states(self.device)
            keep = self.room.keep is None or sum(map(self._size, [*(c.rows for c in chunks), rows])) <= self.room.keep
            try:
                with torch.set_grad_enabled(keep):
                    return _Chunk(rows, self.run(rows), keep, states)
            except BaseException:
                _set_states(states, self.device)  # what a failed pass drew does not count
                raise

        def give_up() -> bool:
            kept = self._kept(chunks)
            if kept:  # graphs stand in the way: none is kept in the rest of this step, and half as many in later ones
                self.room.keep = kept // 2
                chunks[:] = [chunk.dropped() for chunk in chunks]
            return kept > 0

        for _, chunk in self.room.each(self.world.share(self.costs), self.costs, encode, self.name, give_up):
            chunks.append(chunk)
        return chunks

    def gather(self, chunks: Sequence[_Chunk], shape: tuple[int, ...]) -> Tensor:
        """The outputs of all items, from all processes, in float32 and without a graph."""
        outputs = torch.zeros((len(self.costs), *shape), dtype=torch.float32, device=self.device)
        for chunk in chunks:
            outputs[chunk.rows] = chunk.output.detach().float()
        return self.world.sum(outputs)  # everyone else's rows are zero

    def backward(self, chunks: list[_Chunk], gradient: Tensor) -> None:
        """Add the gradient to the weights. A chunk that fails may have added a part of its own, so that all start again."""
        clean = all(parameter.grad is None for parameter in self.parameters)
        done = 0
        while done < len(chunks):
            if attempted(partial(self._carry, chunks[done], gradient)):
                done += 1
                continue
            if not clean:
                raise ModelError(
                    "memory ran out in the middle of a backward pass, and there were gradients of an earlier one, which are "
                    "spoilt now: clear them with zero_grad(set_to_none=True) and set smaller Memory(chunk_tokens=...)"
                )
            for parameter in self.parameters:
                parameter.grad = None
            if any(chunk.kept for chunk in chunks[done:]):
                self.room.keep = self._kept(chunks) // 2
            else:
                self.room.shrink(chunks[done].rows, self.costs, self.name)
            chunks[:] = [part for chunk in chunks for part in self._parts(chunk.dropped())]
            done = 0
        self.room.tell(
            "memory ran out in a training step, which was done in smaller pieces with the same gradient. The training goes on "
            f"with Memory(chunk_tokens={self.room.tokens}, keep_tokens={self.room.keep}): set that from the start, or "
            "gradient_checkpointing=True"
        )

    def _carry(self, chunk: _Chunk, gradient: Tensor) -> None:
        part = gradient[chunk.rows]
        if chunk.kept:
            chunk.output.backward(part.to(chunk.output.dtype))
            return
        now = _states(self.device)
        _set_states(chunk.states, self.device)  # the same dropout as in the first pass
        try:
            output = self.run(chunk.rows)
            output.backward(part.to(output.dtype))
        finally:
            _set_states(now, self.device)

    def _parts(self, chunk: _Chunk) -> Iterator[_Chunk]:
        """The chunk, or smaller ones where there is no room for it."""
        # Masks of dropout have the shape of a chunk: parts cannot draw them again, and their gradient is that of other masks
        # than the loss has seen. Without dropout, as is the default of training, the gradient is the same to rounding.
        for places in self.room.chunks(range(len(chunk.rows)), [self.costs[n] for n in chunk.rows]):
            yield replace(chunk, rows=[chunk.rows[place] for place in places], output=chunk.output[places])

    def _kept(self, chunks: Sequence[_Chunk]) -> int:
        return sum(self._size(chunk.rows) for chunk in chunks if chunk.kept)

    def _size(self, rows: Sequence[int]) -> int:
        return len(rows) * max(self.costs[n] for n in rows)


def _encoding(model: Model, inputs: Sequence[Any], memory: Memory | Room, world: World) -> _Encoding:
    of: Any = model  # an embedder's inputs are items, a reranker's pairs of them, or lists
    return _Encoding(
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
) -> Float[Tensor, ""]:
    """Add the gradient of `loss` on all queries x all candidates to the weights; returns the loss.

    Args:
        model: its weights get the gradient.
        loss: a loss, or one with rules, widths and temperature.
        batch: what is encoded.
        memory: what may be held; the room of a training, where several steps share it.
        world: the processes that share the work; all of them call this with the same batch.
        watch: told where the gradient goes; None where that cannot be said.

    Raises:
        Diverged: vectors or a loss that are not finite; no gradient was added.
        ModelError: an item too large for memory; names it.
    """
    objective = loss if isinstance(loss, Objective) else Objective(loss)
    world = world or World()
    items = list({item.key: item for item in (*batch.queries, *batch.candidates)}.values())
    place = {item.key: n for n, item in enumerate(items)}
    encoding = _encoding(model, items, memory, world)
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
    model: Reranker | ListwiseReranker,
    loss: Loss | Objective,
    batch: ListBatch,
    memory: Memory | Room,
    world: World | None = None,
    watch: Watch | None = None,
) -> Float[Tensor, ""]:
    """Add the gradient of `loss` on every query's own list to the weights; returns the loss. See `embedder_step`."""
    objective = loss if isinstance(loss, Objective) else Objective(loss)
    world = world or World()
    whole = isinstance(model, ListwiseReranker)
    encoding = _encoding(model, batch.lists if whole else batch.pairs, memory, world)
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
    _sum_gradients(model, objective, world)
    return value.detach()


def _sum_gradients(model: Model, objective: Objective, world: World) -> None:
    own = [objective.log_temperature] if objective.log_temperature is not None else []
    world.sum_gradients([*trainable(model.module), *own])
