"""What `hardwon export` writes: mined examples in the forms of others."""

from pathlib import Path

from hardwon.artifacts import load
from hardwon.data import exports, unime
from hardwon.errors import ArtifactError, DataError, RecipeError, unknown
from hardwon.items import Example, read_examples
from hardwon.stages.inspection import data_root

FORMS = ("unime", "tuples", "lists")


def export(
    folder: Path, form: str, out: Path, *, root: Path | None = None, source: str = "", negatives: int | None = None
) -> str:
    """Write the examples of an artifact of mining in another form.

    Args:
        folder: the artifact.
        form: "unime" (UniME-V2's JSON), "tuples" or "lists" (for sentence-transformers).
        out: the file: `.json` for "unime", else `.jsonl` or `.parquet`.
        root: folder of the pictures, if it is not where it was when they were mined; "unime" names them relative to it.
        source: only the examples of this data set; all if empty.
        negatives: of each row, for "unime" and "tuples"; see `hardwon.data.unime.write` and `hardwon.data.exports.tuples`.

    Returns:
        One line that says what was written.

    Raises:
        RecipeError: no such form, or `negatives` for "lists".
        DataError: no such source, or examples that the form has no place for.
    """
    if form not in FORMS:
        raise RecipeError(unknown("form", form, FORMS))
    if form == "lists" and negatives is not None:
        raise RecipeError("lists hold all candidates: leave --negatives out")
    if negatives is not None and negatives < 1:
        raise RecipeError(f"negatives must be at least 1, got {negatives}")
    if form == "unime" and out.suffix != ".json":
        raise DataError(f"{out}: UniME-V2's form is a JSON list, so give it a name that ends in .json")
    home = root or data_root(folder, load(folder, "negatives"))
    examples = _of(source, _read(folder, home))
    if form == "unime":
        done = unime.write(out, examples, home, negatives=negatives or unime.NEGATIVES)
        return (
            f"{done.rows} rows in {out}, images relative to {home}; in {done.filled} of them the negatives are repeated, since "
            f"there were too few; {done.left_out} examples without negatives are left out"
            + _ungraded(done.positives, "positive")
            + _ungraded(done.negatives, "negative")
        )
    rows = exports.tuples(examples, negatives=negatives) if form == "tuples" else exports.lists(examples)
    exports.write(out, rows)
    told = f"{sum(name.startswith('negative_') for name in rows[0])} negatives each; " if form == "tuples" else ""
    return f"{len(rows)} rows in {out}, {told}from {len(examples)} examples"


def _ungraded(count: int, what: str) -> str:
    return (
        f"; {count} {what}{'s' * (count > 1)} left out, since no judge graded {'them' if count > 1 else 'it'}" if count else ""
    )


def _read(folder: Path, home: Path) -> list[Example]:
    try:
        return list(read_examples(folder / "examples.jsonl", home))
    except DataError as error:
        raise ArtifactError(f"{folder} names pictures that are not under {home} ({error}): say where with --root") from error


def _of(source: str, examples: list[Example]) -> list[Example]:
    if not source:
        return examples
    chosen = [example for example in examples if example.source == source]
    if not chosen:
        raise DataError(unknown("source", source, {example.source for example in examples}))
    return chosen
