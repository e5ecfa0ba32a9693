"""Rows of numbers found by key, in memory and on disk: what was computed once is not computed again.

The folder's name must carry the identity of whatever computed the rows; the store itself only knows keys. Every `add` writes
one file of rows and then, last, the list of its keys: rows without that list are not read, so a killed writer does no harm.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hardwon.artifacts import write_atomically


class Store:
    """Rows by key.

    Args:
        folder: where rows are kept between runs; None keeps them in memory only.

    Attributes:
        rows: the rows that are there.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.rows: dict[str, Tensor] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.look()

    def look(self) -> None:
        """Find what is on disk, also what another process has written since."""
        for listed in sorted(self.folder.glob("*.json")) if self.folder is not None else ():
            # What cannot be read is computed again.
            with contextlib.suppress(OSError, ValueError, KeyError, SafetensorError):
                keys = json.loads(listed.read_text(encoding="utf-8"))
                # Mapped, not read: rows come from disk when they are looked at.
                rows = load_file(listed.with_suffix(".safetensors"))["rows"]
                self.rows |= dict(zip(keys, rows, strict=True))

    def add(self, keys: Sequence[str], rows: Float[Tensor, "n ..."]) -> None:
        """Keep rows under their keys."""
        self.rows.update(zip(keys, rows, strict=True))
        if self.folder is not None and keys:
            name = hashlib.blake2b("".join(keys).encode(), digest_size=8).hexdigest()
            save_file({"rows": rows.contiguous()}, self.folder / f".{name}.tmp")
            (self.folder / f".{name}.tmp").replace(self.folder / f"{name}.safetensors")
            write_atomically(self.folder / f"{name}.json", json.dumps(list(keys)))
