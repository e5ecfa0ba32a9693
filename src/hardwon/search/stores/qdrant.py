"""Qdrant: a collection on a server, or in a folder in its local mode; searched exactly (`exact`, no approximation)."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from hardwon.errors import ArtifactError, MissingExtra
from hardwon.search.stores.base import Entry, Match, Space, check_id, checked, missing

SPACE = "hardwon"  # of the collection's metadata
KEY = "QDRANT_API_KEY"
_BATCH = 512
TIMEOUT_S = 60


def _qdrant() -> Any:
    try:
        import qdrant_client
    except ImportError:
        raise MissingExtra("qdrant-client", "qdrant") from None
    return qdrant_client


class Qdrant:
    """A store in a collection of Qdrant.

    Args:
        address: http(s)://host:6333, with an API key in the environment variable QDRANT_API_KEY if the server wants one; or a
            folder, for its local mode, which one process at a time can have open.
        name: of the collection.
        space: what its vectors are.
    """

    def __init__(self, address: str | Path, name: str, space: Space):
        self.address, self.name, self._space = address, name, space
        self._client = _connected(address)
        self._turn = threading.RLock() if isinstance(address, Path) else contextlib.nullcontext()
        try:
            with _answers(address):
                if not self._client.collection_exists(name):
                    raise ArtifactError(f"{address} holds no index {name}: build it with `hardwon index`")
                said = (self._client.get_collection(name).config.metadata or {}).get(SPACE)
            space.check(said, f"collection {name} of {address}")
        except ArtifactError:
            self.close()
            raise

    @classmethod
    def create(cls, address: str | Path, name: str, space: Space) -> Qdrant:
        """A new, empty store.

        Raises:
            ArtifactError: there is one of that name, or the server cannot be reached.
        """
        models, client = _qdrant().models, _connected(address)
        kind = models.Datatype.FLOAT32 if space.dtype == "float32" else models.Datatype.FLOAT16
        vectors = models.VectorParams(size=space.dim, distance=models.Distance.DOT, datatype=kind)
        try:
            with _answers(address):
                if client.collection_exists(name):
                    raise ArtifactError(f"{address} holds an index {name} already: choose another name")
                client.create_collection(name, vectors_config=vectors, metadata={SPACE: space.to_json()})
        finally:
            client.close()
        return cls(address, name, space)

    @property
    def space(self) -> Space:
        """As `Store.space`."""
        return self._space

    def upsert(self, entries: Sequence[Entry], vectors: np.ndarray) -> None:
        """As `Store.upsert`."""
        models, vectors = _qdrant().models, checked(entries, vectors, self._space)
        points = [
            models.PointStruct(id=str(UUID(entry.id)), vector=row.tolist(), payload={"row": entry.payload})
            for entry, row in zip(entries, vectors, strict=True)
        ]
        if points:
            with self._turn, _answers(self.address):
                self._client.upsert(self.name, points, wait=True)

    def delete(self, ids: Sequence[str]) -> None:
        """As `Store.delete`."""
        models = _qdrant().models
        for start in range(0, len(ids), _BATCH):
            those = [str(UUID(check_id(each))) for each in ids[start : start + _BATCH]]
            with self._turn, _answers(self.address):
                self._client.delete(self.name, models.PointIdsList(points=those), wait=True)

    def search(self, vectors: np.ndarray, k: int) -> list[list[Match]]:
        """As `Store.search`."""
        models = _qdrant().models
        # The local mode knows no other way, and warns when it is told.
        exact = None if isinstance(self.address, Path) else models.SearchParams(exact=True)
        asked = [models.QueryRequest(query=row.tolist(), limit=k, params=exact, with_payload=True) for row in vectors]
        with self._turn, _answers(self.address):
            found = self._client.query_batch_points(self.name, asked) if asked else []
        return [[Match(_entry(point), float(point.score)) for point in answer.points] for answer in found]

    def rows(self, ids: Sequence[str] | None = None) -> Iterator[Entry]:
        """As `Store.rows`."""
        if ids is not None:
            found = {_entry(point).id: _entry(point) for point in self._those(ids, payload=True)}
            yield from (found[each] for each in ids if each in found)
            return
        offset = None
        while True:
            with self._turn, _answers(self.address):
                page, offset = self._client.scroll(self.name, limit=_BATCH, offset=offset, with_payload=True)
            yield from map(_entry, page)
            if offset is None:
                return

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """As `Store.vectors`."""
        found = {UUID(str(point.id)).hex: point.vector for point in self._those(ids, payload=False)}
        missing(ids, found)
        return np.array([found[each] for each in ids], dtype=np.float32).reshape(len(ids), self._space.dim)

    def __len__(self) -> int:
        with self._turn, _answers(self.address):
            return self._client.count(self.name, exact=True).count

    def refresh(self) -> bool:
        """As `Store.refresh`: what others write is seen at once."""
        return False

    def close(self) -> None:
        """As `Store.close`."""
        self._client.close()

    def _those(self, ids: Sequence[str], *, payload: bool) -> list[Any]:
        made: list[Any] = []
        for start in range(0, len(ids), _BATCH):
            those = [str(UUID(check_id(each))) for each in ids[start : start + _BATCH]]
            with self._turn, _answers(self.address):
                made += self._client.retrieve(self.name, those, with_payload=payload, with_vectors=not payload)
        return made


def _entry(point: Any) -> Entry:
    return Entry(UUID(str(point.id)).hex, point.payload["row"])


def _connected(address: str | Path) -> Any:
    client = _qdrant().QdrantClient
    with _answers(address), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an API key over plain http, say, is the user's choice on his own network
        if isinstance(address, Path):
            address.mkdir(parents=True, exist_ok=True)
            return client(path=str(address))
        return client(url=address, api_key=os.environ.get(KEY) or None, timeout=TIMEOUT_S, check_compatibility=False)


@contextlib.contextmanager
def _answers(address: str | Path) -> Iterator[None]:
    """Say what was wrong with the other side in our words."""
    try:
        yield
    except ArtifactError:
        raise
    except RuntimeError as error:
        if "already accessed" not in str(error):
            raise
        raise ArtifactError(
            f"{address} is open in another process: Qdrant's local mode has one at a time, for reading and for writing; run "
            "a server (--store http://...:6333) for several"
        ) from None
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("qdrant_client", "httpx", "httpcore", "grpc"):
            raise
        raise ArtifactError(
            f"{address} does not answer as Qdrant does ({str(error)[:200]}): check address and {KEY}"
        ) from error


def drop_collection(address: str | Path, name: str) -> None:
    """Remove a collection. One that is gone is no error."""
    client = _connected(address)
    try:
        with _answers(address):
            client.delete_collection(name)
    finally:
        client.close()
