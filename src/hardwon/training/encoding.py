"""How a process encodes its share of a batch and carries a gradient back: chunks, kept graphs, passes that are repeated."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from hardwon.distributed import World
from hardwon.errors import ModelError
from hardwon.models.memory import Room, attempted

States = tuple[Tensor, ...]


@dataclass(frozen=True)
class Chunk:
    """Items that went through the model together.

    Attributes:
        rows: their places among all items of the batch.
        output: with a graph if it is kept, else without.
        kept: whether it is.
        states: of the generators before the pass, to repeat it.
    """

    rows: list[int]
    output: Tensor
    kept: bool
    states: States

    def dropped(self) -> "Chunk":
        """Without its graph."""
        return replace(self, output=self.output.detach(), kept=False)


def states_of(device: torch.device) -> States:
    """States of the generators that a pass on this device draws from."""
    host = torch.random.get_rng_state()
    return (host, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (host,)


def set_states(states: States, device: torch.device) -> None:
    """Bring the generators back into these states."""
    torch.random.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


@dataclass(frozen=True)
class Encoding:
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

    def forward(self) -> list[Chunk]:
        """Encode this process's share."""
        chunks: list[Chunk] = []

        def encode(rows: list[int]) -> Chunk:
            states = states_of(self.device)
            keep = self.room.keep is None or sum(map(self._size, [*(c.rows for c in chunks), rows])) <= self.room.keep
            try:
                with torch.set_grad_enabled(keep):
                    return Chunk(rows, self.run(rows), keep, states)
            except BaseException:
                set_states(states, self.device)  # what a failed pass drew does not count
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

    def gather(self, chunks: Sequence[Chunk], shape: tuple[int, ...]) -> Tensor:
        """The outputs of all items, from all processes, in float32 and without a graph."""
        outputs = torch.zeros((len(self.costs), *shape), dtype=torch.float32, device=self.device)
        for chunk in chunks:
            outputs[chunk.rows] = chunk.output.detach().float()
        return self.world.sum(outputs, "gathering what was encoded")  # everyone else's rows are zero

    def backward(self, chunks: list[Chunk], gradient: Tensor) -> None:
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

    def _carry(self, chunk: Chunk, gradient: Tensor) -> None:
        part = gradient[chunk.rows]
        if chunk.kept:
            chunk.output.backward(part.to(chunk.output.dtype))
            return
        now = states_of(self.device)
        set_states(chunk.states, self.device)  # the same dropout as in the first pass
        try:
            output = self.run(chunk.rows)
            output.backward(part.to(output.dtype))
        finally:
            set_states(now, self.device)

    def _parts(self, chunk: Chunk) -> Iterator[Chunk]:
        """The chunk, or smaller ones where there is no room for it."""
        # Masks of dropout have the shape of a chunk: parts cannot draw them again, and their gradient is that of other masks
        # than the loss has seen. Without dropout, as is the default of training, the gradient is the same to rounding.
        for places in self.room.chunks(range(len(chunk.rows)), [self.costs[n] for n in chunk.rows]):
            yield replace(chunk, rows=[chunk.rows[place] for place in places], output=chunk.output[places])

    def _kept(self, chunks: Sequence[Chunk]) -> int:
        return sum(self._size(chunk.rows) for chunk in chunks if chunk.kept)

    def _size(self, rows: Sequence[int]) -> int:
        return len(rows) * max(self.costs[n] for n in rows)
