"""Weights, gradients and optimizer state divided among the processes (FSDP2 of torch), for models that one device cannot hold.

Plain `fully_shard` and not `accelerate`: a step here passes the model several times, forward and back, and once more for chunks
whose graphs are not kept. Every pass through sharded weights is a collective, so all processes have to make the same passes in
the same order. `ShardedEncoding` sees to that, which no wrapper around a whole training step can.

The layers of the language model are gathered one by one, when they are needed. Everything else (word embeddings, a vision
tower, heads) is gathered together for each pass: one without pictures would leave the tower out, and the others waiting.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from hardwon.distributed import World, whole
from hardwon.errors import ModelError
from hardwon.models.memory import Room, out_of_memory
from hardwon.training.encoding import Chunk, set_states, states_of

TOWERS = ("vision", "visual", "audio")


class _Use:
    """Which weights a gradient reached in this process: where they are divided, zeros come for those that none reached."""

    def __init__(self) -> None:
        self.parts: dict[tuple[nn.Module, str], nn.Parameter] = {}  # as this process holds them, by module and name
        self.reached: set[nn.Parameter] = set()
        self._watched: set[tuple[nn.Module, str]] = set()

    def watch(self, module: nn.Module) -> None:
        """Look for gradients of the weights that are whole now; once for each, since they are the same objects every time."""
        if len(self._watched) == len(self.parts):
            return
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                place = (part, name)
                if place in self.parts and place not in self._watched and not hasattr(parameter, "to_local"):
                    self._watched.add(place)
                    parameter.register_hook(partial(self._note, self.parts[place]))

    def _note(self, part: nn.Parameter, _gradient: Tensor) -> None:
        self.reached.add(part)


class _Layer(nn.Module):
    """A layer that is gathered for itself. What others ask of the layer it answers; taken away, the layer is as it was."""

    def __init__(self, layer: nn.Module, use: "_Use"):
        super().__init__()
        self.layer = layer
        self._use = use

    def forward(self, *given: Any, **named: Any) -> Any:
        """As the layer."""
        self._use.watch(self)
        return self.layer(*given, **named)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


class _Pass(nn.Module):
    """All of one pass, from items to outputs: within it the weights that are no layer's are whole."""

    def __init__(self, model: Any, use: "_Use"):
        super().__init__()
        self.module = model.module
        self._forward, self._use = model.forward, use

    def forward(self, inputs: Sequence[Any]) -> Tensor:
        """Outputs of the model for some inputs."""
        self._use.watch(self)
        return self._forward(inputs).clone()  # never a view, which hooks of the backward pass can be lost from


@dataclass(frozen=True)
class Shards:
    """A model whose weights are divided.

    Attributes:
        whole: makes a pass; all processes call it as often.
        parameters: what is learned, as each process holds it, by the name it has in the model.
        use: which of it a gradient has reached.
    """

    whole: Callable[[Sequence[Any]], Tensor]
    parameters: Mapping[str, nn.Parameter]
    use: _Use

    def forget_unused(self, world: World) -> None:
        """What no process used has no gradient, so that the optimizer leaves it alone: not even its weight decays."""
        sharded = [p for p in self.parameters.values() if p.grad is not None and hasattr(p.grad, "to_local")]
        if not sharded:
            return
        used = torch.tensor([float(p in self.use.reached) for p in sharded], device=sharded[0].device)
        self.use.reached.clear()
        for parameter, count in zip(sharded, world.sum(used, "looking for unused weights").tolist(), strict=True):
            if not count:
                parameter.grad = None

    def clip(self, parameters: Sequence[nn.Parameter], most: float, world: World) -> float:
        """Make the gradient no longer than `most`; returns its norm, that of all processes' parts together."""
        own = [_local(p.grad) for p in parameters if p.grad is not None]
        squares = sum((part.float().square().sum() for part in own), torch.zeros((), device=parameters[0].device))
        norm = float(world.sum(torch.as_tensor(squares), "measuring the gradient").sqrt())
        for part in own:
            part.mul_(min(1.0, most / (norm + 1e-6)))
        return norm


def _local(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@contextmanager
def sharded(
    model: Any, world: World, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> Iterator[Shards]:
    """Within the block each process holds its part of the weights; where it ends well they are whole again.

    Args:
        model: an `Embedder` or a reranker, the same in all processes.
        world: the processes.
        optimizer: made for the whole weights; within the block it is for the parts.
        parameters: what is learned, by name.

    Raises:
        ModelError: weights of several number formats, which cannot be gathered together.
    """
    before = list(model.module.parameters())
    stack, use = _layers(model), _Use()
    mesh = init_device_mesh(model.body.model.device.type, (world.size,))
    try:
        for n, layer in enumerate(stack):
            stack[n] = fully_shard(_Layer(layer, use), mesh=mesh)
        root: Any = fully_shard(_Pass(model, use), mesh=mesh)
    except AssertionError as error:
        raise ModelError(
            f"the weights of this model cannot be divided: {error}. Load it with one dtype, or leave shard"
        ) from error
    for part in root.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)  # a sum is a sum
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no other
            part.set_reduce_scatter_unused_params(True, recurse=False)
    for part in root.modules():
        own = {(part, name): p for name, p in part.named_parameters(recurse=False) if p.requires_grad}
        use.parts |= own
    parts = dict(zip(before, model.module.parameters(), strict=True))
    for group in optimizer.param_groups:
        group["params"] = [parts.get(parameter, parameter) for parameter in group["params"]]
    yield Shards(root, {name: parts.get(parameter, parameter) for name, parameter in parameters.items()}, use)
    for n, layer in enumerate(stack):
        stack[n] = layer.layer
    _put_together(model.module)


def _layers(model: Any) -> Any:
    """The layers of the language model: the longest list of modules of one kind that every pass goes through."""
    found: list[Any] = []
    if model.body.fused and model.body.transformer is not None:
        for name, part in model.body.transformer.named_modules():
            alike = isinstance(part, nn.ModuleList) and len({type(layer) for layer in part}) == 1
            if alike and not any(tower in name for tower in TOWERS):
                found.append(part)
    return max(found, key=lambda stack: sum(p.numel() for p in stack.parameters()), default=nn.ModuleList())


@torch.no_grad()
def _put_together(module: nn.Module) -> None:
    made: dict[nn.Parameter, nn.Parameter] = {}  # two names may stand for the same weights
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter not in made:
                made[parameter] = nn.Parameter(whole(parameter.detach()).contiguous(), parameter.requires_grad)
            part._parameters[name] = made[parameter]


@dataclass(frozen=True)
class ShardedEncoding:
    """As `Encoding`, with weights that are divided: all processes make the same number of passes.

    One that has fewer chunks than another makes passes that count for nothing. Memory that runs out in one process ends the
    training, for it would have to make more passes than the others.
    """

    run: Callable[[list[int]], Tensor]
    costs: Sequence[int]
    kinds: Sequence[Any]
    room: Room
    device: torch.device
    world: World

    def forward(self) -> list[Chunk]:
        """Encode this process's share."""
        chunks = self._planned()
        count = int(self.world.largest(torch.tensor(len(chunks), device=self.device), "counting passes"))
        chunks += [[] for _ in range(count - len(chunks))]
        sizes = [len(rows) * max((self.costs[n] for n in rows), default=0) for rows in chunks]
        fitting = sum(sum(sizes[: n + 1]) <= (self.room.keep or 0) for n in range(count))
        fewest = -int(self.world.largest(torch.tensor(-fitting, device=self.device), "counting passes"))
        kept = count if self.room.keep is None else fewest
        made = []
        for n, rows in enumerate(chunks):
            states = states_of(self.device)
            with torch.set_grad_enabled(n < kept):
                made.append(Chunk(rows, self._pass(rows), n < kept, states))
        return made

    def _planned(self) -> list[list[int]]:
        """Chunks of one kind each: of two kinds a model may make two passes."""
        by_kind: dict[Any, list[int]] = {}
        for n in self.world.share(self.costs):
            by_kind.setdefault(self.kinds[n], []).append(n)
        return [chunk for rows in by_kind.values() for chunk in self.room.chunks(rows, self.costs)]

    def _pass(self, rows: list[int]) -> Tensor:
        try:
            # A pass for nothing is one of the cheapest item, of which no output is used.
            return self.run(rows) if rows else self.run([self.costs.index(min(self.costs))])[:0]
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise ModelError(
                f"memory ran out in a pass of about {sum(self.costs[n] for n in rows)} tokens: with shard=True a step cannot "
                f"be made smaller on the way. Set Memory(chunk_tokens={self.room.tokens // 2}), keep_tokens=0 or "
                "gradient_checkpointing=True"
            ) from error

    def gather(self, chunks: Sequence[Chunk], shape: tuple[int, ...]) -> Tensor:
        """The outputs of all items, from all processes, in float32 and without a graph."""
        outputs = torch.zeros((len(self.costs), *shape), dtype=torch.float32, device=self.device)
        for chunk in chunks:
            outputs[chunk.rows] = chunk.output.detach().float()
        return self.world.sum(outputs, "gathering what was encoded")

    def backward(self, chunks: Sequence[Chunk], gradient: Tensor) -> None:
        """Add the gradient of all processes to each one's part of the weights."""
        for chunk in chunks:
            part = gradient[chunk.rows]
            if chunk.kept:
                chunk.output.backward(part.to(chunk.output.dtype))
                continue
            now = states_of(self.device)
            set_states(chunk.states, self.device)  # the same dropout as in the first pass
            try:
                output = self._pass(chunk.rows)
                output.backward(part.to(output.dtype))
            finally:
                set_states(now, self.device)
