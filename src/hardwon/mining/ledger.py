"""The ledger: what became of every retrieved candidate, and why."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from hardwon.errors import ArtifactError

Verdict = Literal["kept", "rejected", "spare"]

_ABOUT = b"hardwon"
_AT_ONCE = 100_000  # lines turned into a table at a time


class Said(NamedTuple):
    """What the judge said of a pair.

    Attributes:
        yes: its logit of Yes, as it was given; None if it was not asked or gave no usable answer.
        no: its logit of No.
        grade: in [0, 1]: the softmax over the two.
        problem: why there is no usable answer; empty if there is one, or if nobody asked.
    """

    yes: float | None
    no: float | None
    grade: float | None
    problem: str


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
        gold_similarity: cosine of the query's own positive, of several the first.
        yes: what the judge said of the candidate, see `Said`.
        no: as `Said.no`.
        grade: as `Said.grade`.
        problem: as `Said.problem`.
        gold_yes: as `yes`, of the query's own positive, of several the first.
        gold_no: as `no`.
        gold_grade: as `grade`.
        gold_problem: as `problem`.
        verdict: "kept" (a hard negative), "rejected" (a likely false negative) or "spare" (anything else).
        rule: the rule that decided.
        apart: how far the candidate is from being a copy of a positive, see `Mining.copies`; None where that cannot be said.
        other_golds: what the judge said of the query's other positives, in their order; empty without a judge.
        bar: candidates that are graded above this are likely false negatives (`Mining.beta`); None where no positive has a
            grade.
    """

    row: int
    source: str
    query: str
    candidate: str
    content: str
    rank: int
    similarity: float
    gold_similarity: float
    yes: float | None
    no: float | None
    grade: float | None
    problem: str
    gold_yes: float | None
    gold_no: float | None
    gold_grade: float | None
    gold_problem: str
    verdict: Verdict
    rule: str
    apart: float | None = None
    other_golds: tuple[Said, ...] = ()
    bar: float | None = None

    @property
    def disagreement(self) -> float | None:
        """How far judge and embedder are apart on whether the candidate fits as well as the positive.

        The difference of (grade - grade of the positive) and (similarity - similarity of the positive), in absolute value;
        None without both grades.
        """
        if self.grade is None or self.gold_grade is None:
            return None
        return abs((self.grade - self.gold_grade) - (self.similarity - self.gold_similarity))


SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("source", pa.string()),
        ("query", pa.string()),
        ("candidate", pa.string()),
        ("content", pa.string()),
        ("rank", pa.int32()),
        ("similarity", pa.float32()),
        ("gold_similarity", pa.float32()),
        ("yes", pa.float32()),
        ("no", pa.float32()),
        ("grade", pa.float32()),
        ("problem", pa.string()),
        ("gold_yes", pa.float32()),
        ("gold_no", pa.float32()),
        ("gold_grade", pa.float32()),
        ("gold_problem", pa.string()),
        ("verdict", pa.string()),
        ("rule", pa.string()),
        ("apart", pa.float32()),
        (
            "other_golds",
            pa.list_(
                pa.struct([("yes", pa.float32()), ("no", pa.float32()), ("grade", pa.float32()), ("problem", pa.string())])
            ),
        ),
        ("bar", pa.float32()),
    ]
)


def write(path: Path, entries: Sequence[Entry], about: Mapping[str, Any] | None = None) -> None:
    """Write a Parquet file; `about` (fingerprints of the models, settings) is kept as JSON in its metadata."""
    schema = SCHEMA.with_metadata({_ABOUT: json.dumps(about or {}, sort_keys=True).encode()})
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        for start in range(0, len(entries), _AT_ONCE):
            rows = [
                asdict(e) | {"other_golds": [s._asdict() for s in e.other_golds]} for e in entries[start : start + _AT_ONCE]
            ]
            file.write_table(pa.Table.from_pylist(rows, schema=schema))


def read(path: Path) -> list[Entry]:
    """Read what `write` wrote.

    Raises:
        ArtifactError: it has other columns.
    """
    with pq.ParquetFile(path) as file:
        missing = set(SCHEMA.names) - set(file.schema_arrow.names)
        if missing:
            raise ArtifactError(
                f"{path} has no column {', '.join(sorted(missing))}: another version of hardwon wrote it; mine again"
            )
        rows = (row for batch in file.iter_batches(columns=SCHEMA.names) for row in batch.to_pylist())
        return [Entry(**row | {"other_golds": tuple(Said(**said) for said in row["other_golds"])}) for row in rows]


def about(path: Path) -> dict[str, Any]:
    """What `write` was told: see `Mined.about`."""
    return json.loads((pq.read_schema(path).metadata or {}).get(_ABOUT, b"{}"))


def summary(entries: Sequence[Entry]) -> dict[str, int]:
    """How many candidates each rule kept, rejected or left."""
    counts: dict[str, int] = {}
    for entry in entries:
        counts[f"{entry.verdict}: {entry.rule}"] = counts.get(f"{entry.verdict}: {entry.rule}", 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))


def judged(entries: Sequence[Entry]) -> dict[str, int | float]:
    """How many pairs the judge was asked about, positives among them, and how many and what share has no usable answer.

    A pair counts once. Without a judge all are 0.
    """
    said = {(e.query, e.candidate): e.problem for e in entries if e.yes is not None or e.problem}
    golds = {(e.row, 0): e.gold_problem for e in entries if e.gold_yes is not None or e.gold_problem}
    golds |= {(e.row, 1 + n): s.problem for e in entries for n, s in enumerate(e.other_golds) if s.yes is not None or s.problem}
    pairs, without = len(said) + len(golds), sum(map(bool, [*said.values(), *golds.values()]))
    return {"pairs": pairs, "without a usable answer": without, "share without": without / pairs if pairs else 0.0}
