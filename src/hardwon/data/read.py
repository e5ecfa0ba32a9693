"""Training data and pictures from files that people have, with every row accounted for.

Forms of a row:

- pairs: `query` (text or item), `positive` (text, item, or a list of them), optionally `negative` or `negatives` (same),
  `source`, `id`; beside them `query_image`, `query_instruction`, `positive_image`, `positive_instruction`. An item is an
  object with text, image, images, video, instruction. `positive_instruction` goes for negatives too.
- a video is a list of its frames, pictures in order of time, in `video` of an item or in `query_video`, `positive_video`,
  `negative_video`. One video for each item; the frames are extracted beforehand, e.g. with ffmpeg. CSV has no lists.
- examples: `query`, `candidates`, `source`, `related`, as `items.write_examples` writes them (JSON lines).
- mined data in UniME-V2's form, as its authors release it (a `.json` list; see `hardwon.data.unime`).
- rows of MMEB-train (`qry`, `pos_text` ...; `hardwon.data.mmeb.train` reads the whole folder).
- captions: a folder with `captions.csv`, `captions.jsonl` or `metadata.jsonl` (columns `file_name`, `text`), or with
  `name.txt` beside `name.png`; the caption is the query, the picture its positive.

Text is always text: never a path, never fetched. Pictures are named by paths that stay under the root; with `urls`, an https
address of an allowed host may stand in their place. Blank lines are not rows.
"""

import functools
import hashlib
import io
import json
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args, overload

from hardwon.artifacts import write_atomically
from hardwon.data.read_files import Record, pictures_below, read_records
from hardwon.data.read_rows import Rows
from hardwon.errors import BadRow, BadRows, DataError, OnError, RecipeError, unknown
from hardwon.fetch import AllowedHosts, Fetched, urls_in
from hardwon.items import Example, Item, resolve
from hardwon.progress import bar

_BAR_FROM = 5_000
_REASON = 500


@dataclass(frozen=True)
class Dataset(Sequence[Example]):
    """Examples read from a file or folder: a sequence of them, with an account of the rows that could not be used.

    Attributes:
        examples: one per good row, in the order of the file.
        bad: the other rows, in the order of the file.
        rows: rows in all; always `len(examples) + len(bad)`.
        path: where they were read.
    """

    examples: tuple[Example, ...]
    bad: tuple[BadRow, ...]
    rows: int
    path: Path

    def __post_init__(self) -> None:
        assert len(self.examples) + len(self.bad) == self.rows

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        return self.examples[index]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of what the examples hold, in their order, 32 hexadecimal digits; reads the pictures' bytes once."""
        digest = hashlib.blake2b(digest_size=16)
        for example in self.examples:
            candidates = [[c.item.key, c.relevance, c.origin] for c in example.candidates]
            parts = [example.query.key, candidates, example.source, sorted(example.related)]
            digest.update(json.dumps(parts).encode("ascii") + b"\n")
        return digest.hexdigest()

    def write_quarantine(self, path: Path) -> None:
        """Write the bad rows as Parquet with columns file, line, reason; an empty table if there are none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        # Names of files may hold bytes that are no text; Parquet takes text only.
        rows = [(_printable(row.file), row.line, _printable(row.reason)) for row in self.bad]
        schema = pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string())])
        table = pa.table([[row[column] for row in rows] for column in range(3)], schema=schema)
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_atomically(path, buffer.getvalue())


def read(
    path: Path | str,
    *,
    root: Path | None = None,
    on_error: OnError = "raise",
    max_bad_fraction: float = 0.01,
    decode_pictures: bool = False,
    urls: AllowedHosts | None = None,
) -> Dataset:
    """Read training data: `.json` (a list), `.jsonl`, `.csv`, `.tsv`, `.parquet`, or a folder of pictures with captions.

    Rows of one source with the same query learn of each other: the positives of the others go into
    `Example.related`, so that a known positive is never taken for a negative.

    Args:
        path: file or folder; the forms of a row are listed at the top of this module.
        root: folder that picture paths are relative to and may not leave; by default the folder of the file.
        on_error: "raise" reads to the end and names every bad row; "skip" goes on without them.
        max_bad_fraction: with "skip", the share of bad rows (0 to 1) above which reading fails all the same.
        decode_pictures: decode every picture, which finds damage in the middle of one too but takes milliseconds for
            each; without it headers and ends are looked at.
        urls: fetch pictures that are named by https addresses from these hosts, once, into `fetched` below the root; see
            `hardwon.fetch`. None, the default: an address in place of a picture is a bad row.

    Returns:
        The examples, with the bad rows in `Dataset.bad`.

    Raises:
        BadRows: rows that cannot be used.
        DataError: the file is missing, empty, of no known kind, or has a column that nobody knows.
        RecipeError: an option outside its values.
    """
    path = Path(path)
    _check_options(on_error, max_bad_fraction)
    try:
        records = list(read_records(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}): check its permissions") from error
    if not records:
        raise DataError(f"{path} is empty: it holds no rows")
    root = root or (path if path.is_dir() else path.parent)
    fetched = None if urls is None else Fetched(root, urls)
    if fetched is not None:
        fetched.bring(url for record in records for url in urls_in(record.row))
    rows = Rows(root, decode_pictures, fetched)
    return collect(path, records, rows, on_error=on_error, max_bad_fraction=max_bad_fraction)


def collect(
    path: Path, records: Sequence[Record], rows: Rows, *, on_error: OnError, max_bad_fraction: float, source: str = ""
) -> Dataset:
    """The data set of rows that were read already; what is wrong with them is treated as in `read`.

    Args:
        path: where they were read.
        records: all of them.
        rows: makes examples of them.
        on_error: as in `read`.
        max_bad_fraction: as in `read`.
        source: of examples that state none.
    """
    examples: list[Example] = []
    bad: list[BadRow] = []
    with _progress(path, len(records), "rows") as advance:
        for record in records:
            try:
                if record.reason:
                    raise DataError(record.reason)
                made = rows.example(record.row)
                examples.append(made if made.source or not source else replace(made, source=source))
            except DataError as error:
                bad.append(_bad(record.file, record.line, error))
            advance()
    _refuse(bad, len(records), on_error, max_bad_fraction)
    return Dataset(_relate(examples), tuple(bad), len(records), path)


def images(
    folder: Path | str, *, on_error: OnError = "raise", max_bad_fraction: float = 0.01, decode_pictures: bool = False
) -> tuple[Item, ...]:
    """Every picture below a folder as an item, sorted by path; names that begin with a dot are left out.

    Args:
        folder: where to look, sub-folders included.
        on_error: "raise" names every bad picture; "skip" goes on without them and warns how many they are.
        max_bad_fraction: with "skip", the share of bad pictures (0 to 1) above which it fails all the same.
        decode_pictures: as in `read`.

    Raises:
        BadRows: pictures that cannot be used.
        DataError: the folder does not exist or holds no pictures.
        RecipeError: an option outside its values.
    """
    folder = Path(folder)
    _check_options(on_error, max_bad_fraction)
    paths = pictures_below(folder)
    rows = Rows(folder, decode_pictures)
    items: list[Item] = []
    bad: list[BadRow] = []
    with _progress(folder, len(paths), "pictures") as advance:
        for path in paths:
            try:
                picture = resolve(folder, str(path.relative_to(folder)))
                rows.picture(picture)
                items.append(Item(images=(picture,)))
            except DataError as error:
                bad.append(_bad(path, 1, error))
            advance()
    _refuse(bad, len(paths), on_error, max_bad_fraction)
    if bad:
        warnings.warn(f"{len(bad)} of {len(paths)} pictures below {folder} are left out: {bad[0].reason} ...", stacklevel=2)
    return tuple(items)


def _check_options(on_error: str, max_bad_fraction: float) -> None:
    if on_error not in get_args(OnError):
        raise RecipeError(unknown("on_error", on_error, get_args(OnError)))
    if not 0 <= max_bad_fraction <= 1:
        raise RecipeError(f"max_bad_fraction must lie in [0, 1], got {max_bad_fraction}: 0.01 allows one row in a hundred")


def _progress(path: Path, total: int, unit: str):
    return bar(f"reading {path.name}", total, unit) if total > _BAR_FROM else nullcontext(lambda: None)


def _refuse(bad: Sequence[BadRow], rows: int, on_error: str, max_bad_fraction: float) -> None:
    """Raise for bad rows, unless they were to be skipped, are few enough, and leave something."""
    if not bad or (on_error == "skip" and len(bad) <= max_bad_fraction * rows and len(bad) < rows):
        return
    if on_error == "raise":
        raise BadRows(bad, rows, 'Mend them, or leave them out with on_error="skip"')
    raise BadRows(
        bad, rows, f'on_error="skip" allows {max_bad_fraction:.1%} of the rows: mend them, or allow more with max_bad_fraction'
    )


def _bad(file: Path, line: int, error: DataError) -> BadRow:
    reason = str(error)  # may quote a megabyte of the user's text; what is wrong stands at the start or the end
    return BadRow(
        str(file), line, reason if len(reason) <= _REASON else f"{reason[: _REASON // 2]} ... {reason[-_REASON // 2 :]}"
    )


def _relate(examples: Iterable[Example]) -> tuple[Example, ...]:
    """Add to `related` of each example what other rows of its source give as positives of the same query."""
    related = list(examples)
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, example in enumerate(related):
        groups[example.source, example.query.key].append(index)
    for group in groups.values():
        if len(group) == 1:
            continue
        golds = {index: frozenset(item.content for item in related[index].gold) for index in group}
        known = frozenset[str]().union(*golds.values())
        for index in group:
            example = related[index]
            if others := (example.related | known) - golds[index]:
                related[index] = replace(example, related=others)
    return tuple(related)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
