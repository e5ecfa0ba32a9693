"""MMEB v1: the 36 data sets of pictures and texts, each query with the candidates of its own row, the first one gold.

A data set is one Parquet (or JSON lines) file or several below `NAME/`, in the folder that is given or in its `image-tasks/`
or `MMEB-eval/`. Two published forms are read:

- `qry_text`, `qry_img_path`, `tgt_text`, `tgt_img_path` (lists): the instruction is a part of the text;
- the same with `qry_inst` and `tgt_inst`: the instruction has columns of its own.

Text that goes with a picture holds the placeholder `<|image_1|>`; an item knows that it has a picture, so it is taken out,
with spaces at the ends. Pictures are looked for in the folder itself and in `images/`, `eval_images/`, `image-tasks/` and
`MMEB/` of it.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hardwon.data.mmeb import IMAGES, DataSet
from hardwon.data.mmeb_rows import cleaned
from hardwon.data.read_files import read_table
from hardwon.errors import DataError, OnError
from hardwon.evaluation.gather import Asked, Pool, Shown, asked_of, first_folder, gather, task_of
from hardwon.evaluation.task import Benchmark, Task

Known = dict[tuple[Any, Any, Any], int]
_ROW = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
_BASES = ("", "image-tasks", "MMEB-eval")
_PICTURES = ("images", "", "eval_images", "image-tasks", "image-tasks/MMEB", "MMEB")


def read_images(root: Path, on_error: OnError = "raise") -> Benchmark:
    """Read MMEB v1 from a folder. Raises DataError as `load_benchmark` does."""
    sets = {one.name: one for one in IMAGES}
    return gather("mmeb", list(sets), lambda name: _task(root, sets[name]), on_error)


def _task(root: Path, one: DataSet) -> Task:
    records = [record for file in files_of(root, _BASES, one) for record in read_table(file)]
    folders = [root / name for name in _PICTURES]
    pool = Pool(first_folder(folders, next((path for record in records for path in _paths(record.row)), "")))
    known: Known = {}
    return task_of(one.name, (one.meta_task, one.distribution), asked_of(records, lambda r: [_asked(r.row, pool, known)]), pool)


def files_of(root: Path, bases: Sequence[str], one: DataSet) -> list[Path]:
    """The files that hold the rows of a data set, those of the test part if its name says so.

    Raises:
        DataError: there are none; says what to download.
    """
    for base in bases:
        folder = root / base / one.name
        # A name with a dot in front belongs to the system: some of the published archives hold "._" twins of their files.
        found = sorted(p for p in folder.glob("*") if p.suffix in (".parquet", ".jsonl") and not p.name.startswith("."))
        single = [path for suffix in (".parquet", ".jsonl") if (path := folder.with_name(one.name + suffix)).is_file()]
        if found or single:
            return [path for path in found if path.name.startswith("test")] or found or single
    raise DataError(
        f"{root} has no folder {one.name} with its rows: download {one.name} and the pictures it names from the data set "
        f"{one.source}, and put {one.name}/ below {root}"
    )


def _paths(row: Mapping[str, Any]) -> Iterator[str]:
    for name in ("qry_img_path", "tgt_img_path"):
        value = row.get(name)
        yield from (path for path in (value if isinstance(value, list) else [value]) if isinstance(path, str) and path)


def _asked(row: Mapping[str, Any], pool: Pool, known: Known) -> Asked:
    """The query of a row; `known` remembers candidates as they are written, for a thousand rows name the same thousand."""
    missing = [name for name in _ROW if name not in row]
    if missing:
        raise DataError(f"has no {missing[0]}")
    query = _shown(row["qry_text"], row["qry_img_path"], row.get("qry_inst"), "the query")
    texts, paths = row["tgt_text"], row["tgt_img_path"]
    if isinstance(texts, str) and isinstance(paths, list):  # one text for all pictures
        texts = [texts] * len(paths)
    if not isinstance(texts, list) or not isinstance(paths, list) or len(texts) != len(paths):
        raise DataError("tgt_text and tgt_img_path must be lists of the same length")
    if not texts:
        raise DataError("has no candidates: tgt_text and tgt_img_path are empty")
    if not all(isinstance(part, str | None) for part in (*texts, *paths)):
        raise DataError("tgt_text and tgt_img_path must be lists of strings")
    told = row.get("tgt_inst")
    if not isinstance(told, str | None):
        raise DataError(f"tgt_inst must be a string, got {type(told).__name__}")
    places = []
    for number, written in enumerate(zip(texts, paths, itertools.repeat(told))):
        place = known.get(written)
        if place is None:
            what = f"candidate {number}" if number else "candidate 0, the one that belongs to the query,"
            place = known[written] = pool.place(_shown(*written, what))
        places.append(place)
    return Asked(pool.item(query), (places[0],), tuple(places))


def _shown(text: Any, path: Any, instruction: Any, what: str) -> Shown:
    said, seen, told = text or "", path or "", instruction or ""
    if not isinstance(said, str) or not isinstance(seen, str) or not isinstance(told, str):
        raise DataError(f"text, picture and instruction of {what} must be strings")
    shown = Shown(cleaned(said), (seen,) if seen else (), cleaned(told))
    if not shown.text and not shown.images:
        raise DataError(f"{what} is empty: it has neither text nor a picture")
    return shown
