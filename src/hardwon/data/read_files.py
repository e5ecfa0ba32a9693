"""Files and folders as records: one per row, with the line where it starts, before anybody asks what it means.

Each reader raises DataError for what is wrong with the file as a whole (a column nobody knows, a header that is not
text); what is wrong with one row becomes the `reason` of its record, so that no row is ever lost silently.
"""

import contextlib
import csv
import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from hardwon.data.mmeb_rows import COLUMNS as MMEB_COLUMNS
from hardwon.data.unime import COLUMNS as UNIME_COLUMNS
from hardwon.errors import DataError, unknown

PAIR_COLUMNS = (
    *("query", "query_image", "query_video", "query_instruction"),
    *("positive", "positive_image", "positive_video", "positive_instruction"),
    *("negative", "negative_video", "negatives", "source", "id"),
)
EXAMPLE_COLUMNS = ("query", "candidates", "source", "related", "id")
CAPTION_COLUMNS = ("file_name", "text")
CAPTION_FILES = ("captions.csv", "captions.jsonl", "metadata.jsonl")

# The last five are not read, but a folder of them is a folder of pictures: they are reported, not passed over.
PICTURE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jxl")
)
_LONGEST_CELL = 1 << 28
_CHUNK = 1 << 20  # characters of a JSON list read at a time
_LONGEST_ROW = 1 << 26
_SPACE = re.compile(r"\s*")
_BATCH = 1024


class Record(NamedTuple):
    """One row as it stands in a file.

    Attributes:
        file: the file it stands in.
        line: where it starts, from 1; in Parquet and in a JSON list the number of the row.
        row: its columns by name, empty if it could not be read.
        reason: why it could not be read, empty if it could.
    """

    file: Path
    line: int
    row: Mapping[str, Any]
    reason: str = ""


def read_records(path: Path) -> Iterator[Record]:
    """Every row of a file or folder; `Record.row` holds the columns of a pair or of an example.

    Raises:
        DataError: the path does not exist, is of no known kind, or is wrong as a whole.
    """
    if path.is_dir():
        return _folder_records(path)
    if not path.exists():
        raise DataError(missing_path(path))
    kind = path.suffix.lower()
    if kind not in _READERS:
        raise DataError(f"{path}: {unknown('kind of file', kind, [*_READERS, 'a folder of pictures'])}")
    return _READERS[kind](path, _pair_columns)


def read_table(path: Path) -> Iterator[Record]:
    """Every row of one file, whatever its columns are called. Raises DataError as `read_records` does."""
    if not path.is_file():
        raise DataError(missing_path(path))
    kind = path.suffix.lower()
    if kind not in _READERS:
        raise DataError(f"{path}: {unknown('kind of file', kind, _READERS)}")
    return _READERS[kind](path, tuple)


def pictures_below(folder: Path) -> list[Path]:
    """Files below a folder that are pictures by their suffix, sorted by path; names that begin with a dot are left out."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder" if folder.exists() else missing_path(folder))
    found = [path for path in files_below(folder) if path.suffix.lower() in PICTURE_SUFFIXES]
    if not found:
        raise DataError(f"{folder} holds no pictures: looked for {', '.join(sorted(PICTURE_SUFFIXES))}")
    return found


def not_unicode(value: Any) -> bool:
    """Whether a string in a JSON-like value cannot be written as UTF-8 (it holds half of a surrogate pair)."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return True
        return False
    if isinstance(value, Mapping):
        return any(not_unicode(part) for pair in value.items() for part in pair)
    return isinstance(value, list) and any(not_unicode(part) for part in value)


def json_kind(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


Columns = Callable[[Iterable[str]], tuple[str, ...]]


def _pair_columns(names: Iterable[str]) -> tuple[str, ...]:
    if "hard_negatives" in names:
        return UNIME_COLUMNS
    if "qry" in names:
        return MMEB_COLUMNS
    return EXAMPLE_COLUMNS if "candidates" in names else PAIR_COLUMNS


def _caption_columns(_names: Iterable[str]) -> tuple[str, ...]:
    return CAPTION_COLUMNS


def _check_columns(where: str, names: Iterable[str], columns: Columns) -> None:
    valid = columns(names)
    for name in names:
        if name not in valid:
            raise DataError(f"{where}: {unknown('column', name, valid)}. Rename the column or remove it")


def missing_path(path: Path) -> str:
    """Sentence for a path that does not exist, with the nearest name there is."""
    siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f"{path} does not exist" + (f": did you mean {near[0]!r}?" if near else "")


def _json_lines(path: Path, columns: Columns) -> Iterator[Record]:
    with open(path, "rb") as file:  # in bytes, so that one bad letter spoils one row and only \n ends a line
        for line, raw in enumerate(file, start=1):
            text = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
            if not text.strip():
                continue
            try:
                row = json.loads(text.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield Record(path, line, {}, f"is not UTF-8 ({error.reason} at byte {error.start})")
                continue
            except RecursionError:
                yield Record(path, line, {}, "is nested too deeply")
                continue
            except ValueError as error:
                yield Record(path, line, {}, f"is not JSON ({error})")
                continue
            if not isinstance(row, dict):
                yield Record(path, line, {}, f"must be a JSON object, got {json_kind(row)}")
                continue
            _check_columns(f"{path}:{line}", row, columns)
            yield Record(path, line, row)


def _json_list(path: Path, columns: Columns) -> Iterator[Record]:
    """The rows of a JSON list. What is no JSON cannot be gone on behind, as it can in JSON lines."""
    line = 0
    # Bytes that are not UTF-8 become lone surrogates, which are refused row by row.
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        try:
            for line, row in enumerate(_json_values(file), start=1):
                if not isinstance(row, dict):
                    yield Record(path, line, {}, f"must be a JSON object, got {json_kind(row)}")
                    continue
                _check_columns(f"{path}: row {line}", row, columns)
                yield Record(path, line, row)
        except (ValueError, RecursionError) as error:
            what = "is nested too deeply" if isinstance(error, RecursionError) else f"is not JSON ({error})"
            raise DataError(f"{path}: row {line + 1} {what}: write the file again") from error


def _json_values(file: TextIO) -> Iterator[Any]:
    """The values of a list, one after the other: the text of the whole file is never in memory."""
    decoder, text, at = json.JSONDecoder(), "", 0

    def more() -> bool:
        nonlocal text, at
        read = file.read(_CHUNK)
        text, at = text[at:] + read, 0
        return bool(read)

    def following() -> str:
        """The next character that is no space; "" at the end."""
        nonlocal at
        while True:
            at = _SPACE.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess]  (matches nothing as well)
            if at < len(text) or not more():
                return text[at : at + 1]

    if following() != "[":
        raise ValueError("not a list of rows; a file with one row in each line is named .jsonl")
    at += 1
    if following() == "]":
        return
    while True:
        following()
        while True:
            try:
                value, at = decoder.raw_decode(text, at)
                break
            except json.JSONDecodeError:
                if len(text) - at > _LONGEST_ROW or not more():
                    raise
        yield value
        mark = following()
        if mark == "]":
            return
        if mark != ",":
            raise ValueError(f"expected a comma, got {mark!r}")
        at += 1


def _table(path: Path, columns: Columns) -> Iterator[Record]:
    # Bytes that are not UTF-8 become lone surrogates, which are refused row by row.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file, _long_cells():
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        names: list[str] | None = None
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if names is None:
                    raise DataError(f"{path}:{line}: the header cannot be read ({error})") from error
                yield Record(path, line, {}, f"is not CSV ({error}): write a quote inside a quoted cell twice")
                continue
            if len(cells) < 2 and not "".join(cells).strip():
                continue
            if names is None:
                names = _header(path, cells, columns)
            elif len(cells) != len(names):
                yield Record(path, line, {}, f"has {len(cells)} cells, the header has {len(names)}")
            else:
                yield Record(path, line, {name: cell for name, cell in zip(names, cells, strict=True) if cell})


def _header(path: Path, names: list[str], columns: Columns) -> list[str]:
    if not_unicode(names) or "\x00" in "".join(names):
        raise DataError(f"{path}: the header is not UTF-8; save the file as UTF-8")
    _check_columns(str(path), names, columns)
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise DataError(f"{path}: column {double[0]!r} appears twice; rename or remove one")
    return names


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """The csv module refuses cells above 128 kB, by a limit that is global to the process; it is put back."""
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path, columns: Columns) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    line = 0
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(str(path), file.schema_arrow.names, columns)
            for batch in file.iter_batches(batch_size=_BATCH):
                for index in range(batch.num_rows):
                    line += 1
                    try:
                        row = batch.slice(index, 1).to_pylist()[0]
                    except UnicodeDecodeError as error:
                        yield Record(path, line, {}, f"is not UTF-8 ({error.reason} at byte {error.start})")
                    else:
                        yield Record(path, line, row)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read after row {line} ({error}): write it again") from error


_READERS: dict[str, Callable[[Path, Columns], Iterator[Record]]] = {
    ".json": _json_list,
    ".jsonl": _json_lines,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}


def _folder_records(folder: Path) -> Iterator[Record]:
    captions = [folder / name for name in CAPTION_FILES if (folder / name).is_file()]
    if len(captions) > 1:
        raise DataError(f"{folder} holds {' and '.join(path.name for path in captions)}: keep one of them")
    if not captions:
        yield from _captions_beside(folder)
        return
    for record in _READERS[captions[0].suffix](captions[0], _caption_columns):
        row = {"query": record.row.get("text"), "positive_image": record.row.get("file_name")}
        if record.reason or row["positive_image"]:
            yield record._replace(row=row)
        else:
            yield record._replace(row={}, reason="has no file_name")


def _captions_beside(folder: Path) -> Iterator[Record]:
    pictures = pictures_below(folder)
    stems = {picture.with_suffix("") for picture in pictures}
    for picture in pictures:
        caption = picture.with_suffix(".txt")
        try:
            text = caption.read_text(encoding="utf-8-sig").strip()
        except FileNotFoundError:
            yield Record(picture, 1, {}, f"has no caption: write it to {caption.name} beside the picture")
        except (OSError, UnicodeDecodeError) as error:
            yield Record(caption, 1, {}, f"cannot be read ({error}): save it as UTF-8")
        else:
            yield Record(caption, 1, {"query": text, "positive_image": picture.relative_to(folder).as_posix()})
    for path in files_below(folder):
        if path.suffix.lower() == ".txt" and path.with_suffix("") not in stems:
            yield Record(path, 1, {}, "is a caption without a picture beside it: add the picture or move the text elsewhere")


def files_below(folder: Path) -> list[Path]:
    """Files below a folder, sorted by path; names that begin with a dot are left out."""
    # Names with a dot in front belong to the system (.DS_Store, ._photo.png), not to the user.
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))
