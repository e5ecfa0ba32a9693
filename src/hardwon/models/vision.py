"""What a frozen vision tower makes of pictures, computed once per picture and kept on disk.

Content-addressed: the folder's name holds the identity of weights and pre-processing, the file's rows are found by the hash of
the picture's bytes. A changed tower, picture or pre-processing therefore never meets old features, not even one that changes
while the cache is in use. How an architecture looks at pictures is the business of its eye (`hardwon.models.eyes`).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hardwon.items import Picture, picture_key
from hardwon.progress import bar
from hardwon.store import Store

FILE_BYTES = 2**28  # of one file, about: what an interrupted run has to compute again

Record = dict[str, Tensor]  # all that is kept of a picture; its features have the empty name


class View(NamedTuple):
    """A picture, and whether the model sees it differently because others stand beside it."""

    picture: Picture
    together: bool = False

    @property
    def key(self) -> str:
        """What its features are found by."""
        return picture_key(self.picture) + "-together" * self.together


@runtime_checkable
class Eye(Protocol):
    """How one architecture looks at pictures.

    Attributes:
        names: what is kept of a picture; features have the empty name.
        small: whether features of many pictures fit in memory.
    """

    names: tuple[str, ...]
    small: bool

    @property
    def learns(self) -> bool:
        """Whether training may change a weight that features depend on."""
        ...

    @property
    def usable(self) -> bool:
        """Whether kept features do: not where a gradient has to pass through them."""
        ...

    def state(self) -> Any:
        """Cheap to compute; another one if the identity may have changed."""
        ...

    def identity(self) -> str:
        """Everything that features depend on, but the picture."""
        ...

    def views(self, pictures: Sequence[Picture]) -> list[View]:
        """How the model sees the pictures of one text."""
        ...

    def batches(self, views: Sequence[View]) -> list[list[View]]:
        """Which of them are computed together."""
        ...

    def look(self, views: Sequence[View]) -> list[Record]:
        """What is kept of each, on the CPU, without a graph."""
        ...


def digest(state: Mapping[str, Tensor]) -> str:
    """Hash of tensors with their names, 32 hexadecimal digits."""
    made = hashlib.blake2b(digest_size=16)
    for name, value in sorted(state.items()):
        made.update(f"{name}:{tuple(value.shape)}:{value.dtype}".encode())
        raw: Any = value.detach().cpu().contiguous().view(torch.uint8).numpy() if value.dim() else repr(value.item()).encode()
        made.update(raw)
    return made.hexdigest()


def weights_digest(module: nn.Module) -> str:
    """`digest` of all parameters and buffers."""
    return digest(module.state_dict())


class VisionCache:
    """Records by picture.

    Args:
        eye: looks at pictures that are not known yet.
        folder: where records are kept between runs; None keeps them in memory only.

    Attributes:
        eye: see there.
        home: the folder.
        fingerprint: identity of the eye.
        store: what is known for this identity.
    """

    def __init__(self, eye: Eye, folder: Path | None = None):
        self.eye, self.home = eye, folder
        self._state: Any = None
        self.fingerprint = ""
        self.store = Store(None)
        self._settle()

    def _settle(self) -> None:
        """Weights or settings that have changed meet a store of their own."""
        state = self.eye.state()
        if state == self._state:
            return
        fingerprint = hashlib.blake2b(self.eye.identity().encode(), digest_size=8).hexdigest()
        if fingerprint != self.fingerprint:
            self.store = Store(None if self.home is None else self.home / f"vision-{fingerprint}")
        self._state, self.fingerprint = state, fingerprint

    @property
    def rows(self) -> Mapping[str, Tensor]:
        """What is known; features by the key of their view."""
        return self.store.rows

    def prepare(self, groups: Iterable[Sequence[Picture]], shown: bool = True) -> int:
        """Look at what is not known yet, with a bar; returns how many pictures were new.

        Args:
            groups: pictures that are shown to the model together.
            shown: whether there is a bar.
        """
        self._settle()
        wanted = {view.key: view for group in groups for view in self.eye.views(group)}
        missing = [view for key, view in wanted.items() if key not in self.rows]
        if not missing:
            return 0
        made: Record = {}
        size = 0
        with bar("looking at pictures", len(missing), "pictures", shown=shown) as advance:
            for batch in self.eye.batches(missing):
                for view, record in zip(batch, self.eye.look(batch), strict=True):
                    made |= {view.key + name: value for name, value in record.items()}
                    size += record[""].nbytes
                advance(len(batch))
                if size >= FILE_BYTES:
                    self.store.add(list(made), list(made.values()))
                    made, size = {}, 0
        self.store.add(list(made), list(made.values()))
        return len(missing)

    def forget(self) -> None:
        """Everything that is kept in memory only."""
        if self.home is None:
            self.store = Store(None)

    def records(self, groups: Sequence[Sequence[Picture]]) -> list[Record]:
        """Records of all pictures in order; what is not known is computed."""
        self.prepare(groups, shown=False)
        keys = [view.key for group in groups for view in self.eye.views(group)]
        return [{name: self.rows[key + name] for name in self.eye.names if key + name in self.rows} for key in keys]

    def features(self, pictures: Sequence[Picture]) -> Float[Tensor, "n t w"]:
        """Features of pictures that all have the same number of tokens, in order."""
        return torch.stack([record[""] for record in self.records([pictures])])
