"""Rows of numbers found by key, in memory and on disk: what was computed once is not computed again.

The folder's name must carry the identity of whatever computed the rows; the store itself only knows keys. Every `add` writes
one file of rows and then, last, the list of its keys: rows without that list are not read, so a killed writer does no harm.
A store that is told what it holds has a manifest, too, and compares its files with it when it is opened.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hardwon.artifacts import MANIFEST, Growing, replacing, write_atomically
from hardwon.progress import console

MAKER = "made by"  # in the head of a file
ROWS = "rows"  # name of the one tensor of a file whose rows have the same shape


class Store:
    """Rows by key.

    Args:
        folder: where rows are kept between runs; None keeps them in memory only.
        kind: of the manifest, for people and for checking; "" for none.
        inputs: of the manifest: what computed the rows.
        made_by: the circumstances under which they are computed; kept in every file that is written here.

    Attributes:
        makers: what the files that were read or written say they were made by.
        rows: the rows that are there; those of a folder are mapped, not read: they come from disk when they are looked at.
    """

    def __init__(self, folder: Path | None, kind: str = "", inputs: Mapping[str, Any] | None = None, made_by: str = ""):
        self.folder = folder
        self.made_by = made_by
        self.makers: set[str] = set()
        self.rows: dict[str, Tensor] = {}
        self._growing: Growing | None = None
        self._changed = False
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._growing = Growing(folder, kind, inputs or {}) if kind else None
            self.look()

    def look(self) -> None:
        """Find what is on disk, also what another process has written since."""
        for listed in sorted(self.folder.glob("*.json")) if self.folder is not None else ():
            if listed.name != MANIFEST:
                self._map(listed)

    def describe(self) -> None:
        """Write the manifest, if there is to be one."""
        if self._growing is not None and self._changed:
            self._growing.write({"rows": len(self.rows)})
            self._changed = False

    def _map(self, listed: Path) -> None:
        # What cannot be read is computed again.
        with contextlib.suppress(OSError, ValueError, KeyError, SafetensorError):
            if not self._whole(listed.name) or not self._whole(f"{listed.stem}.safetensors"):
                return
            keys = json.loads(listed.read_text(encoding="utf-8"))
            made = load_file(listed.with_suffix(".safetensors"))
            rows = made[ROWS] if ROWS in made else [made[key] for key in keys]
            self.rows |= dict(zip(keys, rows, strict=True))
            with safe_open(listed.with_suffix(".safetensors"), framework="pt") as opened:
                self.makers |= {(opened.metadata() or {}).get(MAKER, "")} - {""}
            self._changed = True

    def _whole(self, name: str) -> bool:
        if self._growing is None or self._growing.whole(name):
            return True
        told = f"{self.folder}/{name} has changed since it was written: its rows are computed again"
        console().print(told, style="yellow", markup=False, soft_wrap=True)
        return False

    def add(self, keys: Sequence[str], rows: Tensor | Sequence[Tensor]) -> None:
        """Keep rows under their keys; they may differ in shape. What is on disk does not stay in memory."""
        self.rows.update(zip(keys, rows, strict=True))
        if self.folder is None or not keys:
            return
        name = hashlib.blake2b("".join(keys).encode(), digest_size=8).hexdigest()
        alike = len({(row.shape, row.dtype) for row in rows}) == 1
        made = {ROWS: torch.stack(tuple(rows))} if alike else {k: r.contiguous() for k, r in zip(keys, rows, strict=True)}
        with replacing(self.folder / f"{name}.safetensors") as neighbour:
            save_file(made, neighbour, {MAKER: self.made_by} if self.made_by else None)
        write_atomically(self.folder / f"{name}.json", json.dumps(list(keys)))
        if self._growing is not None:
            self._growing.wrote(f"{name}.safetensors")
            self._growing.wrote(f"{name}.json")
        self._map(self.folder / f"{name}.json")
