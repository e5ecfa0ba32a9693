"""What was retrieved, kept: an artifact in the store, named by all it was made from, written a block of queries at a time.

While it is unfinished each block carries the checksum of its bytes in its name, and afterwards the manifest has them all. So a
block that is there is whole, or is searched again.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from hardwon import artifacts
from hardwon.errors import ArtifactError
from hardwon.progress import bar, console

KIND = "retrieval"
SCHEMA = pa.schema(
    [
        ("query", pa.string()),
        ("gold_similarity", pa.float32()),
        ("candidates", pa.list_(pa.string())),
        ("similarities", pa.list_(pa.float32())),
        ("apart", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class Hits:
    """What was found for the queries of one block.

    Attributes:
        query: key of each query.
        gold_similarity: cosine of each query's own positive.
        candidates: for each query keys of the nearest candidates, best first.
        similarities: their cosines.
        apart: how far they are from being copies of a positive, as `Copies.apart` has it; None where that was not looked at.
    """

    query: Sequence[str]
    gold_similarity: Sequence[float]
    candidates: Sequence[Sequence[str]]
    similarities: Sequence[Sequence[float]]
    apart: Sequence[Sequence[float | None]]


@runtime_checkable
class Search(Protocol):
    """Makes hits."""

    def prepare(self) -> None:
        """Called once, before anything is searched."""
        ...

    def __call__(self, number: int) -> Hits:
        """The hits of a block."""
        ...

    def each(self, numbers: Sequence[int]) -> Iterator[Hits]:
        """The hits of several blocks, in turn."""
        ...


def through(store: Path | None, inputs: Mapping[str, Any], sizes: Sequence[int], search: Search) -> Iterator[Hits]:
    """The hits of all blocks in turn: as they were kept, else searched and kept.

    Args:
        store: folder that the artifact lies in; None keeps nothing.
        inputs: everything that hits depend on.
        sizes: queries in each block.
        search: makes what is not there.
    """
    folder = None if store is None else store / f"retrieved-{artifacts.fingerprint(inputs)}"
    if folder is not None and (names := _finished(folder, inputs, len(sizes))):
        console().print(f"retrieved before: {sum(sizes):,} queries, in {folder}", soft_wrap=True, markup=False)
        yield from _kept(folder, names, search)
        return
    search.prepare()  # has bars of its own
    # That took its time: another run of the same may have come to its end meanwhile, whose work must not be moved aside.
    if folder is not None and (names := _finished(folder, inputs, len(sizes), tell=False)):
        yield from _kept(folder, names, search, prepared=True)
        return
    with bar("retrieving", sum(sizes), "queries") as advance:
        if folder is None:
            for size, hits in zip(sizes, search.each(range(len(sizes))), strict=True):
                yield hits
                advance(size)
            return
        with artifacts.writing(folder, KIND, inputs) as draft:
            found, before = 0, [_known(draft.path, n) for n in range(len(sizes))]
            new = search.each([n for n, known in enumerate(before) if known is None])
            for n, size in enumerate(sizes):
                hits = before[n]
                if hits is None:
                    hits = next(new)
                    _write(draft.path, n, hits)
                found += sum(map(len, hits.candidates))
                yield hits
                advance(size)
            assert next(new, None) is None  # lets it clear away what is kept here now
            draft.stats |= {"queries": sum(sizes), "hits": found, "blocks": len(sizes)}


def _kept(folder: Path, names: Sequence[str], search: Search, *, prepared: bool = False) -> Iterator[Hits]:
    """The hits of a finished artifact; a block that vanishes while this goes on is searched again.

    It does where another run finds the artifact damaged and moves it aside: that one writes it anew, so nothing is kept here.
    """
    for n, name in enumerate(names):
        try:
            data = (folder / name).read_bytes()
        except FileNotFoundError:
            if not prepared:
                search.prepare()
                prepared = True
            yield search(n)
        else:
            yield _read(data)


def _finished(folder: Path, inputs: Mapping[str, Any], blocks: int, *, tell: bool = True) -> list[str]:
    """Names of the blocks of an artifact that is there and whole; nothing if it is not, and a warning if it is damaged."""
    if not (folder / artifacts.MANIFEST).exists():
        return []
    try:
        manifest = artifacts.load(folder, KIND)
    except (ArtifactError, FileNotFoundError) as error:  # the latter: moved aside by another run just now
        why = f"retrieved again, since it was damaged: {error}"
        if tell:
            console().print(why, style="yellow", soft_wrap=True, markup=False)
        return []
    names = sorted(manifest.files)
    if [name[:6] for name in names] == [f"{n:06d}" for n in range(blocks)] and manifest.inputs == artifacts.plain(inputs):
        return names
    if tell:
        why = f"retrieved again, since {folder} is not what its name says"
        console().print(why, style="yellow", soft_wrap=True, markup=False)
    return []


def _known(folder: Path, n: int) -> Hits | None:
    """A block that an interrupted run has left."""
    for file in folder.glob(f"{n:06d}-*.parquet"):
        if artifacts.checksum(file).startswith(file.stem[7:]):
            return _read(file.read_bytes())
        console().print(f"{file} is damaged: its queries are searched again", style="yellow", soft_wrap=True, markup=False)
        file.unlink()
    return None


def _write(folder: Path, n: int, hits: Hits) -> None:
    made = io.BytesIO()
    columns = [hits.query, hits.gold_similarity, hits.candidates, hits.similarities, hits.apart]
    table = pa.table([pa.array(column, of.type) for column, of in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
    pq.write_table(table, made, compression="zstd", use_dictionary=False)
    data = made.getvalue()
    artifacts.write_atomically(folder / f"{n:06d}-{artifacts.checksum_of(data)[:32]}.parquet", data)


def _read(data: bytes) -> Hits:
    columns = pq.read_table(pa.BufferReader(data), schema=SCHEMA).to_pydict()
    return Hits(*(columns[name] for name in SCHEMA.names))
