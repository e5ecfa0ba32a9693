"""The ledger: what became of every retrieved candidate, and why."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

Verdict = Literal["kept", "rejected", "spare"]


@dataclass(frozen=True)
class Entry:
    """One retrieved candidate of one query.

    Attributes:
        row: number of the example in the training set.
        source: data set of the example.
        query: key of the query.
        candidate: key of the candidate.
        content: content hash of the candidate, without its instruction.
        rank: place in the retrieval, 0 is the most similar.
        similarity: cosine of the embedder.
        judge: raw log-odds of the judge, None if it was not asked.
        grade: the judge's grade in [0, 1].
        gold_grade: the judge's grade of the query's own positive.
        verdict: "kept" (a hard negative), "rejected" (a likely false negative) or "spare" (fit, but not chosen).
        rule: the rule that decided.
    """

    row: int
    source: str
    query: str
    candidate: str
    content: str
    rank: int
    similarity: float
    judge: float | None
    grade: float | None
    gold_grade: float | None
    verdict: Verdict
    rule: str


SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("source", pa.string()),
        ("query", pa.string()),
        ("candidate", pa.string()),
        ("content", pa.string()),
        ("rank", pa.int32()),
        ("similarity", pa.float32()),
        ("judge", pa.float32()),
        ("grade", pa.float32()),
        ("gold_grade", pa.float32()),
        ("verdict", pa.string()),
        ("rule", pa.string()),
    ]
)


def write(path: Path, entries: Iterable[Entry]) -> None:
    """Write a Parquet file."""
    pq.write_table(pa.Table.from_pylist([asdict(entry) for entry in entries], schema=SCHEMA), path, compression="zstd")


def read(path: Path) -> list[Entry]:
    """Read what `write` wrote."""
    return [Entry(**row) for row in pq.read_table(path).to_pylist()]


def summary(entries: Sequence[Entry]) -> dict[str, int]:
    """How many candidates each rule kept, rejected or left."""
    counts: dict[str, int] = {}
    for entry in entries:
        counts[f"{entry.verdict}: {entry.rule}"] = counts.get(f"{entry.verdict}: {entry.rule}", 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))
