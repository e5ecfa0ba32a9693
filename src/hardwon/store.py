"""Rows of numbers found by key, in memory and on disk: what was computed once is not computed again.

The folder's name must carry the identity of whatever computed the rows; the store itself only knows keys. Every `add` writes
one file of rows and then, last, the list of its keys: rows without that list are not read, so a killed writer does no harm.
A store that is told what it holds has a manifest, too, and compares its files with it when it is opened.
"""

import contextlib
import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
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


class Rows(Mapping[str, Tensor]):
    """Rows by key. Those that come together stay together: a row is cut out when it is asked for.

    A tensor of its own for each of a million rows takes longer to make than all else that is done with it.
    """

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._parts: list[Tensor | Sequence[Tensor]] = []
        self._starts: list[int] = []
        self._end = 0

    def keep(self, keys: Sequence[str], rows: Tensor | Sequence[Tensor]) -> None:
        """Rows under their keys; they may differ in shape. Raises ValueError if there are not as many as keys."""
        if len(keys) != len(rows):
            raise ValueError(f"{len(keys)} keys of {len(rows)} rows")
        if not len(keys):
            return
        self._places.update(zip(keys, range(self._end, self._end + len(keys)), strict=True))
        self._parts.append(rows if isinstance(rows, Tensor) else tuple(rows))
        self._starts.append(self._end)
        self._end += len(keys)

    def __getitem__(self, key: str) -> Tensor:
        place = self._places[key]
        part = bisect_right(self._starts, place) - 1
        return self._parts[part][place - self._starts[part]]

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


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
        self.rows = Rows()
        self._mapped: set[str] = set()  # lists of keys that have been read
        self._growing: Growing | None = None
        self._changed = False
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._growing = Growing(folder, kind, inputs or {}) if kind else None
            self.look()

    def look(self) -> None:
        """Find what is on disk, also what another process has written since."""
        for listed in sorted(self.folder.glob("*.json")) if self.folder is not None else ():
            if listed.name != MANIFEST and listed.name not in self._mapped:
                self._map(listed)

    def describe(self) -> None:
        """Write the manifest, if there is to be one."""
        if self._growing is not None and self._changed:
            self._growing.write({"rows": len(self.rows)})
            self._changed = False

    def _map(self, listed: Path) -> bool:
        """Says whether the rows are there now."""
        with contextlib.suppress(OSError, ValueError, KeyError, SafetensorError):  # what cannot be read is computed again
            if not self._whole(listed.name) or not self._whole(f"{listed.stem}.safetensors"):
                return False
            keys = json.loads(listed.read_text(encoding="utf-8"))
            with safe_open(listed.with_suffix(".safetensors"), framework="pt") as opened:
                made_by = (opened.metadata() or {}).get(MAKER, "")
            made = load_file(listed.with_suffix(".safetensors"))
            self.rows.keep(keys, made[ROWS] if ROWS in made else [made[key] for key in keys])
            self.makers |= {made_by} - {""}
            self._mapped.add(listed.name)
            self._changed = True
            return True
        return False

    def _whole(self, name: str) -> bool:
        if self._growing is None or self._growing.whole(name):
            return True
        told = f"{self.folder}/{name} has changed since it was written: its rows are computed again"
        console().print(told, style="yellow", markup=False, soft_wrap=True)
        return False

    def add(self, keys: Sequence[str], rows: Tensor | Sequence[Tensor]) -> None:
        """Keep rows under their keys; they may differ in shape. What is on disk does not stay in memory."""
        if self.folder is None or not keys:
            self.rows.keep(keys, rows)
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
        if not self._map(self.folder / f"{name}.json"):  # the disk has failed us already
            self.rows.keep(keys, rows)
