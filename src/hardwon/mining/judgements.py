"""What a judge has said, kept for the life of a project: a pair is judged once.

The raw logits of Yes and No are kept by judge, query and candidate, so they serve every later round and every other threshold.
They lie in shards, Parquet files that appear whole or not at all; a shard is never changed, so several runs can write side by
side. Many small shards are packed into one before and after a run. A manifest says whose answers they are and what the judge's
last calibration gave, and has the checksums of the shards: one that has changed is not believed.
"""

import contextlib
import io
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hardwon.artifacts import Growing, fingerprint, write_atomically
from hardwon.mining.calibration import Calibration
from hardwon.models.scorer import Judgements
from hardwon.progress import console

Key = tuple[str, str]  # of the query, of the candidate
CALIBRATION = "calibration"  # of the manifest's stats
PACK = 64  # so many shards are packed into one
SCHEMA = pa.schema(
    [
        ("query", pa.string()),
        ("candidate", pa.string()),
        ("yes", pa.float32()),
        ("no", pa.float32()),
        ("problem", pa.string()),
    ]
)


class Answer(NamedTuple):
    """What is known of one pair.

    Attributes:
        yes: logit of Yes; NaN if there was no usable answer.
        no: logit of No.
        problem: why there was no usable answer; "" if there was one.
    """

    yes: float
    no: float
    problem: str = ""


class JudgementStore:
    """Answers of one judge.

    Args:
        folder: where the answers of all judges are kept; None keeps them in memory only.
        judge: fingerprint of the judge. An answer of another one is never returned.
        name: of the judge, for whoever reads the manifest.
    """

    def __init__(self, folder: Path | None, judge: str, name: str = ""):
        self.folder = None if folder is None else folder / f"judge-{fingerprint(judge)}"
        self._places: dict[bytes, int] = {}
        self._yes, self._no, self._problems = array("f"), array("f"), dict[int, str]()
        self._seen: set[Path] = set()  # shards whose answers are in memory
        self._growing = None
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._growing = Growing(self.folder, "judgements", {"judge": judge} | ({"name": name} if name else {}))
            tried: set[Path] = set()
            while new := sorted(set(self.folder.glob("*.parquet")) - tried):  # again: another run may have packed them
                for shard in new:
                    self._read(shard)
                tried.update(new)
            if len(self._seen) >= PACK:
                self.finish()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, pair: Key) -> bool:
        """Whether there is a usable answer."""
        place = self._places.get(_packed(pair))
        return place is not None and place not in self._problems

    def answer(self, pair: Key) -> Answer | None:
        """What is known of a pair; None if it was never asked about."""
        place = self._places.get(_packed(pair))
        return None if place is None else Answer(self._yes[place], self._no[place], self._problems.get(place, ""))

    def add(self, pairs: Sequence[Key], said: Judgements) -> None:
        """Keep what a judge said, for good when this returns."""
        problems = [said.problems.get(n, "") for n in range(len(pairs))]
        usable = np.isfinite(said.yes) & np.isfinite(said.no)
        rows = [
            (*pair, yes, no, "") if fine and not why else (*pair, math.nan, math.nan, why or f"logits {yes:g} and {no:g}")
            for pair, yes, no, why, fine in zip(pairs, said.yes.tolist(), said.no.tolist(), problems, usable, strict=True)
        ]
        self._remember(rows)
        if self._growing is not None and rows:
            self._seen.add(_write(self._growing, rows))

    def finish(self, calibration: Calibration | None = None) -> None:
        """Pack the shards and write the manifest; it reports the calibration, or without one that which it has reported."""
        self.pack()
        if self._growing is None:
            return
        stats = {"pairs": len(self), "with a usable answer": len(self) - len(self._problems)}
        checked = asdict(calibration) if calibration is not None else self._growing.stats.get(CALIBRATION)
        self._growing.write(stats if checked is None else {**stats, CALIBRATION: checked})

    def pack(self) -> None:
        """Make one shard of many. Killed in between, it leaves answers twice, which does no harm."""
        if self._growing is None or len(self._seen) < PACK:
            return
        rows = [
            (key[:16].hex(), key[16:].hex(), self._yes[place], self._no[place], self._problems.get(place, ""))
            for key, place in self._places.items()
        ]
        whole = _write(self._growing, rows)
        for shard in self._seen - {whole}:
            shard.unlink(missing_ok=True)
        self._seen = {whole}

    def _remember(self, rows: Iterable[tuple[str, str, float, float, str]]) -> None:
        """An answer is never put out by a problem."""
        for query, candidate, yes, no, problem in rows:
            place = self._places.setdefault(_packed((query, candidate)), len(self._places))
            if place == len(self._yes):
                self._yes.append(yes)
                self._no.append(no)
            elif not problem:
                self._yes[place], self._no[place] = yes, no
            elif place not in self._problems:
                continue
            if problem:
                self._problems[place] = problem
            else:
                self._problems.pop(place, None)

    def _read(self, shard: Path) -> None:
        assert self._growing is not None
        try:
            if not self._growing.whole(shard.name):
                told = f"{shard} has changed since it was written: its pairs are judged again"
                console().print(told, style="yellow", markup=False, soft_wrap=True)
                return
            data = shard.read_bytes()
        except FileNotFoundError:  # packed by another run meanwhile
            return
        except OSError as error:  # the disk's fault, not the shard's: it stays for the next run, and is never packed away
            told = f"{shard} cannot be read now ({error}): its pairs are judged again"
            console().print(told, style="yellow", markup=False, soft_wrap=True)
            return
        try:
            columns = pq.read_table(pa.BufferReader(data), schema=SCHEMA).to_pydict()
        except (pa.ArrowException, OSError) as error:  # of bytes in memory: Arrow calls some kinds of damage an OSError
            told = f"{shard} is damaged ({type(error).__name__}): its pairs are judged again"
            console().print(told, style="yellow", markup=False, soft_wrap=True)
            with contextlib.suppress(FileNotFoundError):  # another run has just done the same
                shard.replace(shard.with_name(f"{shard.name}.damaged"))
            return
        self._seen.add(shard)
        self._remember(zip(*(columns[name] for name in SCHEMA.names), strict=True))


def _packed(pair: Key) -> bytes:
    """32 bytes: there may be millions of them."""
    return bytes.fromhex(pair[0] + pair[1])


def _write(into: Growing, rows: Sequence[tuple[str, str, float, float, str]]) -> Path:
    """A shard that is named by its content; rows of the same answers make the same file."""
    table = pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA)
    made = io.BytesIO()
    pq.write_table(table, made, compression="zstd")
    path = into.path / f"{fingerprint([list(map(str, row)) for row in rows])}.parquet"
    write_atomically(path, made.getvalue())
    into.wrote(path.name)
    return path
