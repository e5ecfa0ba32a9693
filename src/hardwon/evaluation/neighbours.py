"""The neighbours of MMEB in the papers: pictures and captions both ways, two-way choices of captions, videos by caption.

Flickr30K and COCO (`ROOT` is the folder that is given):

    dataset_flickr30k.json / dataset_coco.json   Karpathy's split: {"images": [{"filename", "filepath", "split", "sentences"}]}
    images/, flickr30k-images/, val2014/ ...     its pictures; those of the split "test" are asked

ShareGPT4V, of which the first thousand rows are asked:

    share-captioner_coco_lcs_sam_1246k_1107.json   [{"image", "conversations": [.., {"value": caption}]}]
    PATH                                           pictures as the rows name them

Urban1K (Urban200K in some code): `image/NAME.jpg` and `caption/NAME.txt`, or both below `Urban1k/`.

SugarCrepe: `replace_obj.json` ... `add_att.json` ({"0": {"filename", "caption", "negative_caption"}}), in the folder or its
`data/`, and the pictures of COCO in `val2017/` or `images/`.

MSR-VTT and MSVD: rows with `video_id` and `caption` (a string or a list; or `sentence`) in one CSV, JSON, JSON lines or Parquet
file, with "test" in its name if there are several; `videos/VIDEO_ID.mp4`, or its frames in `frames/VIDEO_ID/`.

For every picture all of its captions are gold, and any of them in the first place is a hit. All tasks count as out of
distribution. Instructions are no part of the data; the usual ones are our own words, see `gather.wording`.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hardwon.data.frames import frames_of
from hardwon.data.read_files import Record, read_table
from hardwon.errors import DataError, OnError
from hardwon.evaluation.gather import Asked, Pool, Shown, Wording, asked_of, first_folder, gather, task_of, wording
from hardwon.evaluation.task import Benchmark, Task

SUGARCREPE = {
    "replace": ("replace_obj", "replace_att", "replace_rel"),
    "swap": ("swap_obj", "swap_att"),
    "add": ("add_obj", "add_att"),
}
_SHAREGPT4V = "share-captioner_coco_lcs_sam_1246k_1107.json"
_ASKED = 1000  # rows of ShareGPT4V
_GROUPS = ("retrieval", "ood")
_T2I = Wording("Find the picture that this caption describes.", "Represent this picture.")
_I2T = Wording("Find the caption that describes this picture.")
_T2V = Wording("Find the video that this caption describes.", "Represent this video.")

Captioned = tuple[str, tuple[str, ...]]  # a picture's path, and its captions
Rows = Callable[[], Iterator[Record]]


def both_ways(name: str, root: Path, folders: tuple[str, ...], rows: Rows, on_error: OnError) -> Benchmark:
    """Captions to pictures and pictures to captions.

    Args:
        name: of the benchmark; its tasks are NAME_t2i and NAME_i2t.
        root: folder of the data.
        folders: below it, where pictures may be.
        rows: makes the rows, each with `image` and `captions`.
        on_error: as in `load_benchmark`.
    """

    def read(task: str) -> Task:
        records = list(rows())
        first = next((str(record.row["image"]) for record in records if record.row.get("image")), "")
        pool = Pool(first_folder([root / folder for folder in folders], first))
        ask = _by_caption if task.endswith("_t2i") else _by_picture
        words = wording(root, task, _T2I if task.endswith("_t2i") else _I2T)
        return task_of(task, _GROUPS, asked_of(records, lambda record: ask(record.row, pool, words)), pool)

    return gather(name, [f"{name}_t2i", f"{name}_i2t"], read, on_error)


def _captioned(row: Mapping[str, Any]) -> Captioned:
    image, captions = row.get("image"), row.get("captions")
    if not isinstance(image, str) or not image:
        raise DataError("names no picture")
    if not isinstance(captions, list) or not captions or not all(isinstance(c, str) and c.strip() for c in captions):
        raise DataError(f"picture {image} has no captions, or one that is empty")
    return image, tuple(dict.fromkeys(caption.strip() for caption in captions))


def _by_caption(row: Mapping[str, Any], pool: Pool, words: Wording) -> Iterator[Asked]:
    image, captions = _captioned(row)
    gold = pool.place(Shown(images=(image,), instruction=words.candidate))
    for caption in captions:
        yield Asked(pool.item(Shown(caption, instruction=words.query)), (gold,))


def _by_picture(row: Mapping[str, Any], pool: Pool, words: Wording) -> Iterator[Asked]:
    image, captions = _captioned(row)
    gold = tuple(pool.place(Shown(caption, instruction=words.candidate)) for caption in captions)
    yield Asked(pool.item(Shown(images=(image,), instruction=words.query)), gold)


def read_flickr30k(root: Path, on_error: OnError = "raise") -> Benchmark:
    """Read Flickr30K: 1,000 pictures with five captions each. Raises DataError as `load_benchmark` does."""
    return both_ways("flickr30k", root, ("images", "flickr30k-images", ""), lambda: _karpathy(root, "flickr30k"), on_error)


def read_coco(root: Path, on_error: OnError = "raise") -> Benchmark:
    """Read COCO: 5,000 pictures with five captions each. Raises DataError as `load_benchmark` does."""
    return both_ways("coco", root, ("images", ""), lambda: _karpathy(root, "coco"), on_error)


def _karpathy(root: Path, name: str) -> Iterator[Record]:
    path = root / f"dataset_{name}.json"
    listed = _parsed(path, f"download Karpathy's split of {name} and put it there, and the pictures of {name} into images/")
    rows = listed.get("images") if isinstance(listed, dict) else None
    if not isinstance(rows, list):
        raise DataError(f"{path} must hold an object with a list called images")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            yield Record(path, number, {}, "must be an object")
        elif row.get("split") == "test":
            said = [one.get("raw") for one in row.get("sentences") or () if isinstance(one, dict)]
            image = "/".join(part for part in (row.get("filepath"), row.get("filename")) if isinstance(part, str) and part)
            yield Record(path, number, {"image": image, "captions": said})


def _parsed(path: Path, otherwise: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: {otherwise}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): download it again") from error


def read_sharegpt4v(root: Path, on_error: OnError = "raise") -> Benchmark:
    """Read ShareGPT4V: the first 1,000 pictures, one long caption each. Raises DataError as `load_benchmark` does."""

    def rows() -> Iterator[Record]:
        path = root / _SHAREGPT4V
        if not path.is_file():
            raise DataError(f"{path} does not exist: download it from the data set Lin-Chen/ShareGPT4V, with its pictures")
        for record in itertools.islice(read_table(path), _ASKED):
            turns = record.row.get("conversations")
            said = [turn.get("value") for turn in turns[1:2] if isinstance(turn, dict)] if isinstance(turns, list) else []
            yield record._replace(row={"image": record.row.get("image"), "captions": said})

    return both_ways("sharegpt4v", root, ("", "data", "images"), rows, on_error)


def read_urban1k(root: Path, on_error: OnError = "raise") -> Benchmark:
    """Read Urban1K: 1,000 pictures, one long caption each. Raises DataError as `load_benchmark` does."""

    def rows() -> Iterator[Record]:
        base = root / "Urban1k" if (root / "Urban1k").is_dir() else root
        captions = sorted(path for path in (base / "caption").glob("*.txt") if path.name[0] != ".")
        if not captions:
            raise DataError(f"{base / 'caption'} holds no captions: download caption/ and image/ of BeichenZhang/Urban1k")
        for path in captions:
            twins = [base / "image" / (path.stem + suffix) for suffix in (".jpg", ".png")]
            image = next((twin for twin in twins if twin.is_file()), twins[0])
            said = path.read_text(encoding="utf-8", errors="replace")
            yield Record(path, 1, {"image": image.relative_to(root).as_posix(), "captions": [said]})

    return both_ways("urban1k", root, ("",), rows, on_error)


def read_sugarcrepe(root: Path, on_error: OnError = "raise") -> Benchmark:
    """Read SugarCrepe: seven sets of pictures with a true and a false caption. Raises DataError as `load_benchmark` does."""
    names = list(itertools.chain.from_iterable(SUGARCREPE.values()))
    return gather("sugarcrepe", names, lambda name: _choices(root, name), on_error)


def _choices(root: Path, name: str) -> Task:
    path = first_folder([root, root / "data"], f"{name}.json") / f"{name}.json"
    listed = _parsed(path, f"download {name}.json of SugarCrepe (its repository's data/), and COCO's val2017/ beside it")
    rows = list(listed.values()) if isinstance(listed, dict) else listed
    if not isinstance(rows, list):
        raise DataError(f"{path} must hold an object of rows")
    first = next((row["filename"] for row in rows if isinstance(row, dict) and isinstance(row.get("filename"), str)), "")
    pool = Pool(first_folder([root / "val2017", root / "images", root], first))
    words = wording(root, name, _I2T)

    def read(record: Record) -> list[Asked]:
        row = record.row
        for column in ("filename", "caption", "negative_caption"):
            if not isinstance(row.get(column), str) or not row[column].strip():
                raise DataError(f"has no {column}")
        if row["caption"].strip() == row["negative_caption"].strip():
            raise DataError("its true and its false caption are the same")
        gold, other = (pool.place(Shown(row[c].strip(), instruction=words.candidate)) for c in ("caption", "negative_caption"))
        return [Asked(pool.item(Shown(images=(row["filename"],), instruction=words.query)), (gold,), (gold, other))]

    return task_of(name, _GROUPS, asked_of(_records(path, rows), read), pool)


def _records(path: Path, rows: Iterable[Any]) -> Iterator[Record]:
    for number, row in enumerate(rows, start=1):
        yield Record(path, number, row) if isinstance(row, dict) else Record(path, number, {}, "must be an object")


def read_msrvtt(root: Path, on_error: OnError = "raise") -> Benchmark:
    """Read MSR-VTT: captions to videos. Raises DataError as `load_benchmark` does."""
    return gather("msrvtt", ["msrvtt_t2v"], lambda name: _videos(root, name, "friedrichor/MSR-VTT, part test_1k"), on_error)


def read_msvd(root: Path, on_error: OnError = "raise") -> Benchmark:
    """Read MSVD: captions to videos, about forty captions for each. Raises DataError as `load_benchmark` does."""
    return gather("msvd", ["msvd_t2v"], lambda name: _videos(root, name, "friedrichor/MSVD, part test"), on_error)


def _videos(root: Path, name: str, source: str) -> Task:
    found = sorted(p for p in root.glob("*") if p.suffix in (".csv", ".json", ".jsonl", ".parquet") and p.name[0] != ".")
    files = [path for path in found if "test" in path.name] or [path for path in found if path.name != "instructions.json"]
    if len(files) != 1:
        held = ", ".join(path.name for path in files) or "none"
        raise DataError(f"{root} must hold one file of rows ({held} found): those of {source}, with its films in videos/")
    words, pool = wording(root, name, _T2V), Pool(root)

    def read(record: Record) -> Iterator[Asked]:
        video, said = record.row.get("video_id"), record.row.get("caption") or record.row.get("sentence")
        listed = said if isinstance(said, list) else [said]
        captions = [caption.strip() for caption in listed if isinstance(caption, str) and caption.strip()]
        if not video or not captions or len(captions) < len(listed):
            raise DataError("needs a video_id and a caption")
        frames = frames_of(root, f"frames/{video}", f"videos/{video}")
        gold = pool.place(Shown(instruction=words.candidate, video=frames))
        for caption in dict.fromkeys(captions):
            yield Asked(pool.item(Shown(caption, instruction=words.query)), (gold,))

    return task_of(name, _GROUPS, asked_of(read_table(files[0]), read), pool)
