"""LanceDB: a durable table in a folder, searched on disk without an index that approximates, so exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from hardwon.errors import ArtifactError, MissingExtra
from hardwon.search.stores.base import Entry, Match, Space, check_id, checked, missing
from hardwon.search.stores.embedded import one_writer

SPACE = b"hardwon"  # of the schema's metadata
COMPACTED_AT = 64  # writes of this process between two tidyings
_BATCH = 4096


def _lancedb() -> Any:
    try:
        import lancedb
    except ImportError:
        raise MissingExtra("lancedb", "lance") from None
    return lancedb


class Lance:
    """A store in a LanceDB table. Writers of one machine take turns.

    Args:
        folder: of the data base.
        name: of the table.
        space: what its vectors are.
    """

    def __init__(self, folder: Path, name: str, space: Space):
        self.folder, self.name, self._space, self._writes = folder, name, space, 0
        try:
            self._table = _lancedb().connect(str(folder)).open_table(name)
        except (ValueError, OSError, RuntimeError) as error:
            raise ArtifactError(f"{folder} holds no table {name}: build the index with `hardwon index` ({error})") from error
        said = (self._table.schema.metadata or {}).get(SPACE)
        space.check(None if said is None else json.loads(said), f"table {name} of {folder}")
        self._seen = self._table.version

    @classmethod
    def create(cls, folder: Path, name: str, space: Space) -> Lance:
        """A new, empty store.

        Raises:
            ArtifactError: there is a table of that name.
        """
        import pyarrow as pa

        kind = pa.float32() if space.dtype == "float32" else pa.float16()
        fields = [pa.field("id", pa.string()), pa.field("payload", pa.string()), pa.field("vector", pa.list_(kind, space.dim))]
        schema = pa.schema(fields, metadata={SPACE: json.dumps(space.to_json()).encode()})
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _lancedb().connect(str(folder)).create_table(name, schema=schema, mode="create")
        except (ValueError, OSError) as error:
            raise ArtifactError(f"{folder} cannot have a new table {name} ({error}): choose another folder") from error
        return cls(folder, name, space)

    @property
    def space(self) -> Space:
        """As `Store.space`."""
        return self._space

    def upsert(self, entries: Sequence[Entry], vectors: np.ndarray) -> None:
        """As `Store.upsert`."""
        import pyarrow as pa

        vectors = checked(entries, vectors, self._space)
        if not entries:
            return
        schema = self._table.schema
        flat = pa.array(vectors.astype(self._space.dtype).ravel())
        columns = [
            pa.array([entry.id for entry in entries]),
            pa.array([entry.payload for entry in entries]),
            pa.FixedSizeListArray.from_arrays(flat, self._space.dim),
        ]
        rows = pa.table(columns, schema=schema)
        with one_writer(self.folder):
            self._table.checkout_latest()
            self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
            self._tidy()

    def delete(self, ids: Sequence[str]) -> None:
        """As `Store.delete`."""
        with one_writer(self.folder):
            self._table.checkout_latest()
            for those in _parts(ids):
                self._table.delete(_among(those))
            self._tidy()

    def search(self, vectors: np.ndarray, k: int) -> list[list[Match]]:
        """As `Store.search`."""
        made: list[list[Match]] = []
        for vector in vectors:
            asked = self._table.search(np.ascontiguousarray(vector, dtype=self._space.dtype)).distance_type("dot")
            found = asked.bypass_vector_index().select(["id", "payload", "_distance"]).limit(k).to_arrow()
            columns = [found[name].to_pylist() for name in ("id", "payload", "_distance")]
            made.append([Match(Entry(i, p), 1.0 - d) for i, p, d in zip(*columns, strict=True)])
        return made

    def rows(self, ids: Sequence[str] | None = None) -> Iterator[Entry]:
        """As `Store.rows`."""
        if ids is None:
            columns = self._table.search().select(["id", "payload"])
            for batch in columns.to_batches(_BATCH):
                yield from map(Entry, batch["id"].to_pylist(), batch["payload"].to_pylist())
            return
        found = dict(row for those in _parts(ids) for row in self._those(those, "payload"))
        yield from (Entry(each, found[each]) for each in ids if each in found)

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """As `Store.vectors`."""
        found = dict(row for those in _parts(ids) for row in self._those(those, "vector"))
        missing(ids, found)
        return np.array([found[each] for each in ids], dtype=np.float32).reshape(len(ids), self._space.dim)

    def __len__(self) -> int:
        return self._table.count_rows()

    def refresh(self) -> bool:
        """As `Store.refresh`."""
        self._table.checkout_latest()
        changed, self._seen = self._table.version != self._seen, self._table.version
        return changed

    def close(self) -> None:
        """As `Store.close`."""

    def _those(self, ids: Sequence[str], column: str) -> list[tuple[str, Any]]:
        found = self._table.search().where(_among(ids)).select(["id", column]).limit(len(ids)).to_arrow()
        return list(zip(found["id"].to_pylist(), found[column].to_pylist(), strict=True))

    def _tidy(self) -> None:
        """Merge small files now and then; versions of the last hour stay for those who read them."""
        self._writes += 1
        if self._writes % COMPACTED_AT == 0:
            self._table.optimize(cleanup_older_than=timedelta(hours=1))


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _BATCH):
        yield ids[start : start + _BATCH]


def _among(ids: Sequence[str]) -> str:
    return f"id in ({', '.join(repr(check_id(each)) for each in ids)})"


def drop_table(folder: Path, name: str) -> None:
    """Remove a table. One that is gone is no error."""
    base = _lancedb().connect(str(folder))
    if name in base.list_tables().tables:
        base.drop_table(name)
