"""`load_benchmark`: a benchmark by its name, or by the folder that holds it."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from hardwon.data.assets import cache_root
from hardwon.data.emoji import build
from hardwon.data.mmeb import IMAGES
from hardwon.errors import DataError, OnError, RecipeError, unknown
from hardwon.evaluation import neighbours
from hardwon.evaluation.files import HEAD, read_benchmark
from hardwon.evaluation.mmeb_documents import read_documents
from hardwon.evaluation.mmeb_images import read_images
from hardwon.evaluation.mmeb_videos import read_videos
from hardwon.evaluation.task import Benchmark

SMALL = "mmeb-small"

READERS: dict[str, Callable[[Path, OnError], Benchmark]] = {
    "mmeb": read_images,
    "mmeb-v2-video": read_videos,
    "mmeb-v2-visdoc": read_documents,
    "flickr30k": neighbours.read_flickr30k,
    "coco": neighbours.read_coco,
    "sharegpt4v": neighbours.read_sharegpt4v,
    "urban1k": neighbours.read_urban1k,
    "sugarcrepe": neighbours.read_sugarcrepe,
    "msrvtt": neighbours.read_msrvtt,
    "msvd": neighbours.read_msvd,
}


def load_benchmark(name: str, root: Path | None = None, *, on_error: OnError = "raise", revision: str = "") -> Benchmark:
    """Read a benchmark.

    Args:
        name: "mmeb-small" (built in: made from packages of the ordinary registry when it is asked for the first time), a
            key of `READERS`, whose data people bring, or the path of a folder that `read_benchmark` takes.
        root: folder that holds the data of a named benchmark; docs/evaluation.md says how. "mmeb-small" is made below it,
            or in the cache when there is none. The path of a folder is relative to it.
        on_error: what to do about data sets that are not there or cannot be used: "raise" names all of them and what to
            download; "skip" goes on with the others and lists them in `Benchmark.missing`.
        revision: the beginning of the `Benchmark.revision` that is asked for, to be sure that the data are the same as
            another time; empty for any.

    Raises:
        DataError: a benchmark of another revision, or one that is not there, without its `root`, or with data that cannot be
            used.
        RecipeError: an unknown `on_error`.
    """
    if on_error not in get_args(OnError):
        raise RecipeError(unknown("on_error", on_error, get_args(OnError)))
    made = _read(name, root, on_error)
    if not made.revision.startswith(revision):
        gone = f" ({len(made.missing)} of its data sets are missing)" if made.missing else ""
        odd = "; ".join(_odd_sizes(made)[:5])
        raise DataError(
            f"{name} has the revision {made.revision}, asked for was {revision}: it is not the same data{gone}"
            + (f". Sizes that are not the published ones: {odd}" if odd else "")
        )
    return made


def _odd_sizes(benchmark: Benchmark) -> list[str]:
    published = {one.name: one.queries for one in IMAGES}
    asked = [(task.name, len(task.queries), published.get(task.name, 0)) for task in benchmark.tasks]
    return [f"{name} has {count} queries, not {usual}" for name, count, usual in asked if usual and count != usual]


def _read(name: str, root: Path | None, on_error: OnError) -> Benchmark:
    if name in READERS:
        if root is None:
            raise DataError(f"{name} needs the folder that holds its data: give it as root (--root FOLDER)")
        if not root.is_dir():
            raise DataError(f"{root} is not a folder: it must hold the data of {name}")
        return READERS[name](root, on_error)
    if name == SMALL:
        return read_benchmark(_small(root))
    folder = Path(name) if root is None else root / name
    if not folder.exists() and "/" not in name:
        raise DataError(unknown("benchmark", name, [SMALL, *READERS]) + f", or a folder with a {HEAD}")
    return read_benchmark(folder)


def _small(root: Path | None) -> Path:
    """The folder of the built-in benchmark; a folder with a benchmark.json is complete, for that is written last."""
    base = root or cache_root() / "sample"
    folder = base / SMALL
    if not (folder / HEAD).is_file():
        build(base)
    return folder
