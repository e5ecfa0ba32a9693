"""What came of a run over a path, in numbers and in words."""

from dataclasses import dataclass, field
from pathlib import Path

from hardwon.errors import BadRow
from hardwon.search.compressed import Recall
from hardwon.search.narrowed import Narrowed
from hardwon.search.stores import Space

FAILED = "failed.json"
TARGET = 0.99  # recall that a form is set to reach
K = 10  # results that a recall is about
TOLD = 10  # failures that are printed


@dataclass
class Counts:
    """What came of a run, in rows.

    Attributes:
        added: not there before.
        updated: there with another content.
        unchanged: there as they are.
        removed: not below the path any more.
        encoded: that the model had to read; the others of those added had been there under another name, or were copied.
        copied: whose vectors an earlier build of the index had.
        failed: what cannot be used, and why.
        others: files of each suffix that were passed over.
        rows: in the index now.
        recall: what the form finds of what the vectors that are kept find; None for these, or if it was measured before.
        space: what is kept.
        narrowed: what is kept finds of what whole vectors find; None if it is they, or if this run has not seen enough of them.
        partly: that was measured among a part of the rows.
        untold: whole vectors are not kept, and what that costs is not known.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    encoded: int = 0
    copied: int = 0
    failed: list[BadRow] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    recall: Recall | None = None
    space: Space | None = None
    narrowed: Narrowed | None = None
    partly: bool = False
    untold: bool = False

    def __str__(self) -> str:
        copied = f", {self.copied:,} copied from the index that was there" if self.copied else ""
        return (
            f"{self.added:,} added, {self.updated:,} updated, {self.unchanged:,} unchanged, {self.removed:,} removed, "
            f"{len(self.failed):,} failed; {self.rows:,} rows, {self.encoded:,} encoded{copied}"
        )


def told(counts: Counts, out: Path) -> list[str]:
    """What a run came to, line by line, for people."""
    lines = [str(counts)]
    if counts.failed:
        lines += [f"  {row}" for row in counts.failed[:TOLD]]
        more = len(counts.failed) - TOLD
        lines.append(f"  {f'... and {more:,} more, ' if more > 0 else ''}all of them in {out / FAILED}")
    if counts.others:
        kinds = ", ".join(f"{number:,} {suffix or 'without a suffix'}" for suffix, number in sorted(counts.others.items()))
        lines.append(f"passed over, of other kinds: {kinds}")
    return [*lines, *_costs(counts)]


def _costs(counts: Counts) -> list[str]:
    """What was measured of smaller vectors; each line says what it compares with what."""
    lines, space, found = [], counts.space, counts.narrowed
    if space is not None and found is not None:
        part = f" that this run has read, of {counts.rows:,} rows: among all likely less" if counts.partly else ""
        lines.append(f"{found}{part}")
        if found.value.mean < TARGET:
            lines.append(f"that is below {TARGET}: keep more numbers with --dimensions and --rebuild if it matters")
    if space is not None and counts.untold:
        lines.append(
            f"what {space.dim} of {space.width} numbers in {space.dtype} find of what whole vectors find is not known: this "
            f"run has read too few of the {counts.rows:,} rows for that; --rebuild tells"
        )
    if counts.recall is not None:
        form, value = counts.recall, counts.recall.value
        of = f"these {space.dim} numbers in float32" if space is not None and space.narrowed else "whole vectors"
        lines.append(
            f"kept as {form.form}: {form.bytes} bytes a vector; finds {value.mean:.3f} [{value.low:.3f}, {value.high:.3f}] "
            f"of the best {K} of {of}, asked with items of this index"
        )
        if value.mean < TARGET:
            lines.append(f"that is below {TARGET}: take a larger form with --form and --rebuild if it matters")
    return lines
