"""What processes that share a batch tell each other."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Ranks(Protocol):
    """What the processes tell each other; `hardwon.distributed.World` is one."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        ...

    def largest(self, tensor: Tensor) -> Tensor:
        """The elementwise maximum over all processes."""
        ...


class Alone:
    """One process."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Itself."""
        return tensor

    largest = sum
