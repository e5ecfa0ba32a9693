"""`World`: the processes that train together; the only file that imports torch.distributed.

Nothing here multiplies or divides by the number of processes: what is summed is a sum.
"""

import datetime
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from hardwon.errors import HardwonError

BUCKET = 1 << 24  # numbers that travel together
# The others wait while the first process works alone: embeds a training set to group it, looks at all its pictures. torch's own
# 10 minutes (NCCL) would end a run that is well. A process that dies is noticed sooner: its launcher ends the others.
PATIENCE = datetime.timedelta(days=1)


@dataclass(frozen=True)
class World:
    """The processes that train together; one process by default, for which every method does nothing.

    Attributes:
        rank: number of this process.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "World":
        """The processes that torch.distributed connects; one if it was not set up.

        Under a launcher (torchrun, accelerate launch: `WORLD_SIZE` is set) the connection is made here.
        """
        if not dist.is_available():
            return cls()
        if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where a tensor has to lie to travel between the processes; the CPU if there is only one."""
        if self.size > 1 and dist.get_backend() == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def largest(self, tensor: Tensor) -> Tensor:
        """The elementwise maximum over all processes."""
        return self._reduced(tensor, dist.ReduceOp.MAX)

    def _reduced(self, tensor: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
        if self.size == 1:
            return tensor
        tensor = tensor.detach().clone().contiguous()
        dist.all_reduce(tensor, how)
        return tensor

    def told(self, text: str) -> list[str]:
        """What each process has to say, by rank; all of them must ask."""
        if self.size == 1:
            return [text]
        made = [""] * self.size
        dist.all_gather_object(made, text)
        return made

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
        used = self.sum(torch.tensor([float(parameter.grad is not None) for parameter in everything], device=device))
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
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Make every process's tensors those of the first, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def all_or_none(self, what: str, device: torch.device) -> Iterator[None]:
        """Work that may fail in some processes: then none goes on after it, to wait for those that are gone.

        Args:
            what: the work, for the error.
            device: of the model.

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
            failed, broken = self.sum(torch.tensor([failed, broken], device=device)).tolist()
        if broken:
            raise RuntimeError(f"{what} broke down in another process: its message says why") from own
        if own is not None:
            raise own
        if failed:
            raise HardwonError(f"{what} failed in another process: its message says why")
