"""`World`: the processes that train together; with `training.sharded` the only file that imports torch.distributed.

Nothing here multiplies or divides by the number of processes: what is summed is a sum.

There are three kinds of waiting. To find each other processes have ten minutes, or the time of a step if that is longer: they
start apart, and one that never comes cannot be noticed otherwise. Within a training step they are never far apart: one that
keeps the others waiting for ten minutes (`HARDWON_TIMEOUT_S`) hangs, and they end. Everywhere else one of them may work for
hours while the others wait: embed a training set to group it, look at all its pictures, validate, save. That waiting goes
through a group of its own, over gloo on the CPU, with a patience of a day; a process that dies closes its connections and is
noticed at once in either.
"""

import datetime
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

from hardwon.errors import DataError, HardwonError, ProcessLost, RecipeError

BUCKET = 1 << 24  # numbers that travel together
TIMEOUT_S = 600.0
MEETING = datetime.timedelta(seconds=TIMEOUT_S)
PATIENCE = datetime.timedelta(days=1)

_alone: ContextVar[bool] = ContextVar("alone", default=False)


def timeout() -> datetime.timedelta:
    """How long processes wait for each other within a training step."""
    said = os.environ.get("HARDWON_TIMEOUT_S", "")
    try:
        seconds = float(said or TIMEOUT_S)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise RecipeError(f"HARDWON_TIMEOUT_S must be a number of seconds above 0, got {said!r}")
    return datetime.timedelta(seconds=seconds)


@functools.lru_cache(maxsize=1)
def _patient(whole: Any) -> Any:
    """The group of the same processes that waits long; `whole` is the group that it belongs to."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def _connect() -> None:
    """Connect the processes that a launcher has started, once all of them are here."""
    limit = timeout()
    store, rank, size = next(rendezvous("env://", timeout=max(MEETING, limit)))
    store.set(f"hardwon {rank}", "here")
    store.wait([f"hardwon {n}" for n in range(size)], max(MEETING, limit))
    kind = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(kind, store=store, rank=rank, world_size=size, timeout=limit)
    _patient(dist.group.WORLD)


@dataclass(frozen=True)
class World:
    """The processes that train together; one process by default, for which every method does nothing.

    Attributes:
        rank: number of this process.
        size: how many there are.
        patient: whether one may keep the others waiting for hours; see `in_step`.
        during: what they are doing, for errors.
    """

    rank: int = 0
    size: int = 1
    patient: bool = True
    during: str = ""

    @classmethod
    def current(cls) -> "World":
        """The processes that torch.distributed connects; one if it was not set up, or within `alone`.

        Under a launcher (torchrun, accelerate launch, srun with the same variables: `WORLD_SIZE` is set) the connection is made
        here.
        """
        if not dist.is_available() or _alone.get():
            return cls()
        if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            _connect()
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where a tensor has to lie to travel between the processes; the CPU if there is only one."""
        if self.size > 1 and not self.patient and dist.get_backend() == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def in_step(self, during: str = "") -> "World":
        """The same processes, who wait for each other no longer than `timeout`; `during` says in errors what goes on."""
        return replace(self, patient=False, during=during)

    @property
    def _group(self) -> Any:
        return _patient(dist.group.WORLD) if self.patient else dist.group.WORLD

    @contextmanager
    def _meeting(self, what: str) -> Iterator[None]:
        """Around a collective: what torch says of a process that does not come is made plain."""
        try:
            yield
        except RuntimeError as error:  # of gloo and NCCL alike
            doing = ", ".join(part for part in (self.during, what) if part)
            raise ProcessLost(self.rank, self.size, doing, error) from error

    def sum(self, tensor: Tensor, what: str = "adding up") -> Tensor:
        """The sum over all processes; `what` they are doing, for errors."""
        return self._reduced(tensor, dist.ReduceOp.SUM, what)

    def largest(self, tensor: Tensor, what: str = "comparing") -> Tensor:
        """The elementwise maximum over all processes."""
        return self._reduced(tensor, dist.ReduceOp.MAX, what)

    def _reduced(self, tensor: Tensor, how: dist.ReduceOp.RedOpType, what: str) -> Tensor:
        if self.size == 1:
            return tensor
        made = tensor.detach().clone().contiguous()
        if self.patient:
            made = made.cpu()
        with self._meeting(what):
            dist.all_reduce(made, how, group=self._group)
        return made.to(tensor.device)

    def told(self, text: str) -> list[str]:
        """What each process has to say, by rank; all of them must ask."""
        if self.size == 1:
            return [text]
        made = [""] * self.size
        with self._meeting("telling each other"):
            dist.all_gather_object(made, text, group=self._group)
        return made

    def alike(self, said: bytes) -> None:
        """Go on if all processes say the same; all of them must ask.

        Raises:
            DataError: they do not.
        """
        if self.size == 1:
            return
        number = int.from_bytes(hashlib.blake2b(said, digest_size=7).digest())
        most, least = self.largest(torch.tensor([number, -number], device=self.device), "comparing batches").tolist()
        if most != -least:
            raise DataError(
                f"the processes do not learn the same{f' ({self.during})' if self.during else ''}: their data, recipes or "
                "checkpoints differ. All of them must read the same files, on a file system that all machines share"
            )

    def share(self, costs: Sequence[int]) -> list[int]:
        """Positions of the items that are this process's work, in order; costs are spread evenly."""
        order = sorted(range(len(costs)), key=lambda n: (-costs[n], n))
        return sorted(order[self.rank :: self.size])

    def rows(self, count: int) -> slice:
        """This process's share of `count` rows."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up the gradients of all processes, in place; a parameter that one process did not use counts as zero there."""
        if self.size == 1:
            return
        batch: list[Tensor] = []
        everything = list(parameters)
        # What nobody used keeps no gradient, so that the optimizer leaves it alone: not even its weight decays.
        device = everything[0].device if everything else "cpu"
        used = self.sum(
            torch.tensor([float(parameter.grad is not None) for parameter in everything], device=device), "adding up gradients"
        )
        for parameter, count in zip(everything, used.tolist(), strict=True):
            if not count:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            batch.append(parameter.grad)
            if sum(t.numel() for t in batch) >= BUCKET:
                self._sum_together(batch)
                batch = []
        if batch:
            self._sum_together(batch)

    def _sum_together(self, gradients: Sequence[Tensor]) -> None:
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]), "adding up gradients")
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Make every process's tensors those of the first, in place."""
        if self.size == 1:
            return
        for tensor in tensors:
            own = tensor.detach()
            sent = own.cpu() if self.patient else own
            with self._meeting("taking over the first one's weights"):
                dist.broadcast(sent, 0, group=self._group)
            if sent is not own:
                own.copy_(sent)

    def wait(self, what: str = "waiting for all to come here") -> None:
        """Go on when all processes are here."""
        self.sum(torch.zeros(1, device=self.device), what)

    @contextmanager
    def all_or_none(self, what: str) -> Iterator[None]:
        """Work that may fail in some processes: then none goes on after it, to wait for those that are gone.

        Args:
            what: the work, for the error.

        Raises:
            HardwonError: one in this process; or there was one in another, which says why.
            RuntimeError: another process broke down with anything else and is gone. On purpose no HardwonError: where such are
                skipped, this process would go on and wait for that one.
        """
        failed, broken, own = 1.0, 1.0, None
        try:
            yield
            failed = broken = 0.0
        except HardwonError as error:
            own, broken = error, 0.0
        finally:
            failed, broken = self.sum(torch.tensor([failed, broken], device=self.device), f"{what} together").tolist()
        if broken:
            raise RuntimeError(f"{what} broke down in another process: its message says why") from own
        if own is not None:
            raise own
        if failed:
            raise HardwonError(f"{what} failed in another process: its message says why")

    def by_first(self, what: str, work: Callable[[], None]) -> None:
        """Work that the first process does alone, while the others wait for it; errors as `all_or_none`."""
        with self.all_or_none(what):
            if self.first:
                with alone():
                    work()


def whole(tensor: Any) -> Tensor:
    """A tensor of which each process holds a part, put together; any other as it is. All processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def parted(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor as `like` is held: divided among the processes, or on its device. All processes must ask."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor.to(like.device)


@contextmanager
def alone() -> Iterator[None]:
    """Within the block `World.current` finds no other processes: for work that one of them does for all."""
    before = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(before)


def leave() -> None:
    """Part from the other processes, where the work is done."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
