"""The 24 visual-document tasks of MMEB-V2: queries in words, a corpus of page pictures, graded judgements, linear nDCG@5.

    visdoc-tasks/SET/queries/*.parquet     query-id, query
    visdoc-tasks/SET/corpus/*.parquet      corpus-id, image (bytes, or a path relative to the folder that was given)
    visdoc-tasks/SET/qrels/*.parquet       query-id, corpus-id, score; a score of 0 is no judgement

SET is the data set's name in the table, or the name of the repository it comes from ("ViDoSeek-page-fixed", with or without
"-fixed"). JSON lines do as well. Pages that are held as bytes are written once to `visdoc-tasks/pictures/SET/`, named by their
content. Where a set names a page twice in its judgements, the higher score counts.

Known, from the code of VLM2Vec-V2: the columns, the names of the repositories, that every query searches the whole corpus.
Assumed: the folders' names above. Page numbers of ViDoSeek-page and MMLongBench-page were mended in release 2.1 of MMEB-V2;
results from before are of other data. Instructions: as for the video tasks.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hardwon.artifacts import write_atomically
from hardwon.data.mmeb import DOCUMENTS, DataSet
from hardwon.data.read_files import Record, read_table
from hardwon.errors import BadRow, BadRows, DataError, OnError
from hardwon.evaluation.gather import Asked, Pool, Shown, Wording, asked_of, gather, task_of, wording
from hardwon.evaluation.task import Benchmark, Task
from hardwon.items import picture_key

_BASE = "visdoc-tasks"
_USUAL = Wording("Find the page that answers the query.", "Represent this page.")

Judged = dict[str, dict[str, float]]


def read_documents(root: Path, on_error: OnError = "raise") -> Benchmark:
    """Read the visual-document tasks from a folder. Raises DataError as `load_benchmark` does."""
    sets = {one.name: one for one in DOCUMENTS}
    return gather("mmeb-v2-visdoc", list(sets), lambda name: _task(root, sets[name]), on_error)


def _task(root: Path, one: DataSet) -> Task:
    folder = _folder(root, one)
    words, pool = wording(root, one.name, _USUAL), Pool(root)
    pages = _pages(root, folder, one.name, pool, words.candidate)
    judged = _judged(folder, pages)

    def read(record: Record) -> list[Asked]:
        name, query = _had(record.row, "query-id"), _had(record.row, "query")
        found = judged.get(name)
        if found is None:
            raise DataError(f"no judgement says which page belongs to query {name!r}")
        # Two pages may look the same; a copy of a page that belongs to the query belongs to it as well.
        best: dict[int, float] = {}
        for page, grade in found.items():
            best[pages[page]] = max(grade, best.get(pages[page], 0))
        return [Asked(pool.item(Shown(query, instruction=words.query)), tuple(best), None, tuple(best.values()))]

    asked = asked_of(_records(folder, "queries"), read)
    return task_of(one.name, (one.meta_task, one.distribution), asked, pool, one.metric)


def _folder(root: Path, one: DataSet) -> Path:
    repository = one.source.split("/")[1]
    for name in (one.name, repository, repository.removesuffix("-fixed")):
        if (root / _BASE / name).is_dir():
            return root / _BASE / name
    raise DataError(
        f"{root / _BASE} has no folder {one.name}: download queries, corpus and qrels of the data set {one.source} into it"
    )


def _records(folder: Path, part: str) -> Iterator[Record]:
    below = sorted(p for p in (folder / part).glob("*") if p.suffix in (".parquet", ".jsonl") and p.name[0] != ".")
    single = [path for suffix in (".parquet", ".jsonl") if (path := folder / (part + suffix)).is_file()]
    if not below and not single:
        raise DataError(f"{folder} has no {part}: it needs queries, corpus and qrels, each a folder of Parquet files")
    for file in below or single:
        yield from read_table(file)


def _had(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None or value == "":
        raise DataError(f"has no {name}")
    return str(value)


def _pages(root: Path, folder: Path, name: str, pool: Pool, instruction: str) -> dict[str, int]:
    """Positions in the corpus by the names of the pages."""
    places: dict[str, int] = {}
    bad, count = [], 0
    for record in _records(folder, "corpus"):
        count += 1
        try:
            if record.reason:
                raise DataError(record.reason)
            page = _had(record.row, "corpus-id")
            path = _picture(root, name, record.row.get("image"))
            places[page] = pool.place(Shown(images=(path,), instruction=instruction))
        except DataError as error:
            bad.append(BadRow(str(record.file), record.line, str(error)))
    if bad:
        raise BadRows(bad, count)
    return places


def _picture(root: Path, name: str, image: Any) -> str:
    """Path of a page's picture relative to the root."""
    held = image.get("bytes") if isinstance(image, Mapping) else None
    path = image.get("path") if isinstance(image, Mapping) else image
    if held is None:
        if not isinstance(path, str) or not path:
            raise DataError("has no image")
        return path
    written = f"{_BASE}/pictures/{name}/{picture_key(held)}.png"  # readers go by the content, not by the suffix
    if not (root / written).exists():
        (root / written).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(root / written, held)
    return written


def _judged(folder: Path, pages: Mapping[str, int]) -> Judged:
    """For each query the pages that belong to it, with their grades."""
    made: Judged = {}
    bad, count = [], 0
    for record in _records(folder, "qrels"):
        count += 1
        try:
            if record.reason:
                raise DataError(record.reason)
            query, page, score = _had(record.row, "query-id"), _had(record.row, "corpus-id"), record.row.get("score")
            if not isinstance(score, int | float):
                raise DataError("has no score, a number")
            if page not in pages:
                raise DataError(f"page {page!r} is not in the corpus, so no model could find it")
        except DataError as error:
            bad.append(BadRow(str(record.file), record.line, str(error)))
            continue
        if score > 0:
            grades = made.setdefault(query, {})
            grades[page] = max(grades.get(page, 0.0), float(score))
    if bad:
        raise BadRows(bad, count)
    return made
