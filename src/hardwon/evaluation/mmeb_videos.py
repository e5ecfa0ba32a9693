"""The 18 video tasks of MMEB-V2, as its download script lays them out.

    video-tasks/SOURCE/                rows: Parquet, JSON or JSON lines, at any depth; those with "test" in their name if any
    video-tasks/frames/GROUP/VIDEO/    frames of a video, eight of which are taken; or, where they are missing,
    video-tasks/videos/GROUP/VIDEO.mp4

SOURCE and GROUP of each data set stand in `LAYOUTS`, with the columns that its rows have. Known, from the code of VLM2Vec-V2:
the columns, the folders of frames, which tasks search one corpus (label sets, text to video) and which the candidates of
the row, and how a question and its options are written into one text. Assumed: that the labels of a label set all occur in
its test rows (the published code has lists of them), and where exactly rows lie below SOURCE. Instructions are no part of the
data: the usual ones here are our own words; put the words your model knows into `instructions.json` (see `gather.wording`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from hardwon.data.frames import frames_of
from hardwon.data.mmeb import VIDEOS, DataSet
from hardwon.data.read_files import Record, read_table
from hardwon.errors import DataError, OnError
from hardwon.evaluation.gather import Asked, Pool, Shown, Wording, asked_of, gather, task_of, wording
from hardwon.evaluation.task import Benchmark, Task
from hardwon.items import resolve

Row = Mapping[str, Any]
_BASE = "video-tasks"


@dataclass(frozen=True)
class Layout:
    """Where a data set lies and how its rows are read.

    Attributes:
        source: folder of its rows.
        group: folder of its frames.
        video: column that names the video.
        read: makes the query of a row, given the place where items and frames are had.
        text: column of the words.
        prefix: before the video's name in the name of its folder.
        part: folder below `source` that holds the rows, if there are others beside them.
    """

    source: str
    group: str
    video: str
    read: Callable[["_Place", Row], Asked]
    text: str = ""
    prefix: str = ""
    part: str = ""


@dataclass(frozen=True)
class _Place:
    """What is needed to read the rows of a data set."""

    root: Path
    layout: Layout
    words: Wording
    pool: Pool

    def frames(self, name: str) -> tuple[str, ...]:
        group, named = self.layout.group, f"{self.layout.prefix}{name}"
        return frames_of(self.root, f"{_BASE}/frames/{group}/{named}", f"{_BASE}/videos/{group}/{named}")

    def video(self, row: Row) -> tuple[str, ...]:
        return self.frames(str(_had(row, self.layout.video)))


def read_videos(root: Path, on_error: OnError = "raise") -> Benchmark:
    """Read the video tasks from a folder. Raises DataError as `load_benchmark` does."""
    sets = {one.name: one for one in VIDEOS}
    return gather("mmeb-v2-video", list(sets), lambda name: _task(root, sets[name]), on_error)


def _task(root: Path, one: DataSet) -> Task:
    layout = LAYOUTS[one.name]
    place = _Place(root, layout, wording(root, one.name, _USUAL[one.meta_task]), Pool(root))
    records = [record for file in _files(root, one, layout) for record in _records(file)]
    asked = asked_of(records, lambda record: [layout.read(place, record.row)])
    return task_of(one.name, (one.meta_task, one.distribution), asked, place.pool)


def _files(root: Path, one: DataSet, layout: Layout) -> list[Path]:
    folder = root / _BASE / layout.source
    folder = folder / layout.part if (folder / layout.part).is_dir() else folder
    found = sorted(p for p in folder.rglob("*") if p.suffix in (".parquet", ".jsonl", ".json") and p.name[0] != ".")
    if not found:
        raise DataError(
            f"{folder} holds no rows: download the rows of {one.name} into it, and its frames into "
            f"{root / _BASE / 'frames' / layout.group}, from the data set {one.source}"
        )
    return [path for path in found if "test" in path.name] or found


def _records(file: Path) -> Iterator[Record]:
    for record in read_table(file):
        yield record._replace(row={"subset": file.stem, **record.row})  # MVBench has a file for each of its parts


def _had(row: Row, name: str) -> Any:
    if row.get(name) is None or row[name] == "":
        raise DataError(f"has no {name}")
    return row[name]


def _words(row: Row, name: str) -> str:
    """A column of words; of several captions the first."""
    value = _had(row, name)
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, str):
        raise DataError(f"{name} must be a string or a list of strings")
    return value


def _listed(row: Row, name: str) -> list[str]:
    value = _had(row, name)
    if not isinstance(value, list) or not value or not all(isinstance(part, str) for part in value):
        raise DataError(f"{name} must be a list of strings that holds something")
    return value


# ---- classification: a video, and labels


def _label(place: _Place, row: Row) -> Asked:
    gold = place.pool.place(Shown(_words(row, "pos_text"), instruction=place.words.candidate))
    return Asked(place.pool.item(Shown(instruction=place.words.query, video=place.video(row))), (gold,))


def _choice(place: _Place, row: Row) -> Asked:
    """The labels stand in the row, the right one among them."""
    return _chosen(place, row, "", _listed(row, "neg_text"), _words(row, "pos_text"))


# ---- questions: a video with a question, and options


def _chosen(place: _Place, row: Row, text: str, options: Sequence[str], answer: str) -> Asked:
    if answer not in options:
        raise DataError(f"its answer {answer!r} is not among its candidates {', '.join(map(repr, options))}")
    places = [place.pool.place(Shown(option, instruction=place.words.candidate)) for option in options]
    query = place.pool.item(Shown(text, instruction=place.words.query, video=place.video(row)))
    return Asked(query, (places[options.index(answer)],), tuple(places))


def _lettered(question: str, options: Sequence[str]) -> tuple[str, list[str]]:
    lines = [f"({chr(ord('A') + n)}) {option}" for n, option in enumerate(options)]
    return "\n".join([question, "Options:", *lines]), lines


def _bare(options: Sequence[str]) -> list[str]:
    """Options without their letters: "A. a drum." is "a drum"."""
    return [option[option.find(". ") :].strip(". ") for option in options]


def _nth(options: Sequence[str], number: Any) -> str:
    try:
        where = "ABCDEFGH".index(number) if isinstance(number, str) and not number.isdigit() else int(number)
        if not 0 <= where < len(options):
            raise IndexError
        return options[where]
    except (ValueError, TypeError, IndexError):
        raise DataError(f"its answer {number!r} is none of its {len(options)} options") from None


def _video_mme(place: _Place, row: Row) -> Asked:
    options = _listed(row, "options")
    text = "\n".join([_words(row, "question"), *options])
    return _chosen(place, row, text, _bare(options), _nth(_bare(options), _had(row, "answer")))


def _egoschema(place: _Place, row: Row) -> Asked:
    options = _listed(row, "option")
    text = _words(row, "question") + " ".join(options)
    return _chosen(place, row, text, _bare(options), _nth(_bare(options), _had(row, "answer")))


def _nextqa(place: _Place, row: Row) -> Asked:
    options = [_words(row, f"a{n}") for n in range(5)]
    return _chosen(place, row, _lettered(_words(row, "question"), options)[0], options, _nth(options, _had(row, "answer")))


def _mvbench(place: _Place, row: Row) -> Asked:
    options, answer = _listed(row, "candidates"), _words(row, "answer")
    text, lines = _lettered(_words(row, "question"), options)
    row = {**row, "video": f"{_words(row, 'subset')}/{_words(row, 'video')}"}
    return _chosen(place, row, text, lines, lines[options.index(answer)] if answer in options else answer)


def _yes_or_no(place: _Place, row: Row) -> Asked:
    return _chosen(place, row, _words(row, "question") + "? (A) yes; (B) no.", ["yes", "no"], _words(row, "answer"))


# ---- retrieval: words, and the videos of all rows


def _video(place: _Place, row: Row) -> Asked:
    name = str(_had(row, place.layout.video))
    frames = place.frames(PurePosixPath(name).stem if place.layout.video == "video" else name)  # a path, or a name
    gold = place.pool.place(Shown(instruction=place.words.candidate, video=frames))
    return Asked(place.pool.item(Shown(_words(row, place.layout.text), instruction=place.words.query)), (gold,))


# ---- moments: words with a video, and clips of it


def _moment(place: _Place, row: Row) -> Asked:
    """The folder of the video's frames holds a folder `query` and one for each clip; the right one is called positive..."""
    name = PurePosixPath(_words(row, "video_path")).stem
    folder = f"{_BASE}/frames/{place.layout.group}/{name}"
    there = resolve(place.root, folder)
    clips = sorted(path.name for path in there.iterdir() if path.is_dir() and path.name != "query") if there.is_dir() else []
    if not any(clip.startswith("positive") for clip in clips):
        raise DataError(f"{there} has no folder positive... with the frames of the right clip")
    places = {clip: _clip(place, f"{name}/{clip}") for clip in clips}
    gold = dict.fromkeys(where for clip, where in places.items() if clip.startswith("positive"))
    query = Shown(_words(row, "query"), instruction=place.words.query, video=place.frames(f"{name}/query"))
    return Asked(place.pool.item(query), tuple(gold), tuple(dict.fromkeys(places.values())))


def _clip(place: _Place, name: str) -> int:
    return place.pool.place(Shown(instruction=place.words.candidate, video=place.frames(name)))


def _momentseeker(place: _Place, row: Row) -> Asked:
    """Clips are named by path; the query may come with a video or a picture."""
    groups = [row.get(name) or [] for name in ("positive_frames", "negative_frames")]
    if not groups[0]:
        raise DataError("has no positive_frames: no candidate belongs to it")
    if not all(isinstance(clip, dict) for group in groups for clip in group):
        raise DataError("positive_frames and negative_frames must be lists of objects with output_path")
    right, wrong = (list(dict.fromkeys(_clip(place, _flat(_words(c, "output_path"))) for c in group)) for group in groups)
    given = str(row.get("input_frames") or "")
    images = (f"{_BASE}/frames/{place.layout.group}/query_{given}",) if given.endswith(".jpg") else ()
    video = place.frames(_flat(given)) if given.endswith(".mp4") else ()
    query = Shown(_words(row, "query"), images, place.words.query, video)
    return Asked(place.pool.item(query), tuple(right), tuple(dict.fromkeys((*right, *wrong))))


def _flat(path: str) -> str:
    return "video_frames/" + path.split(".mp4", maxsplit=1)[0].replace("/", "_")


_USUAL = {
    "classification": Wording("Tell what is done in this video."),
    "vqa": Wording("Answer the question about this video with one of its options."),
    "retrieval": Wording("Find the video that shows what is described.", "Represent this video."),
    "moments": Wording("Find the part of this video that shows what is described.", "Represent this video."),
}
_of_labels = partial(Layout, video="video_id", read=_label)
LAYOUTS = {
    "K700": _of_labels("Kinetics-700", "video_cls/K700"),
    "HMDB51": _of_labels("HMDB51", "video_cls/HMDB51"),
    "UCF101": _of_labels("UCF101", "video_cls/UCF101"),
    "Breakfast": _of_labels("Breakfast", "video_cls/Breakfast"),
    "SmthSmthV2": Layout("SmthSmthV2", "video_cls/SSv2", "video_id", _choice),
    "MVBench": Layout("MVBench", "video_qa/MVBench", "video", _mvbench),
    "Video-MME": Layout("Video-MME", "video_qa/Video-MME", "videoID", _video_mme),
    "NExTQA": Layout("NExTQA", "video_qa/NExTQA", "video", _nextqa, part="MC"),
    "EgoSchema": Layout("EgoSchema", "video_qa/EgoSchema", "video_idx", _egoschema, part="Subset"),
    "ActivityNetQA": Layout("ActivityNetQA", "video_qa/ActivityNetQA", "video_name", _yes_or_no, prefix="v_"),
    "DiDeMo": Layout("DiDeMo", "video_ret/DiDeMo", "video", _video, "caption"),
    "MSR-VTT": Layout("MSR-VTT", "video_ret/MSR-VTT", "video_id", _video, "caption"),
    "MSVD": Layout("MSVD", "video_ret/MSVD", "video_id", _video, "caption"),
    "VATEX": Layout("VATEX", "video_ret/VATEX", "videoID", _video, "enCap"),
    "YouCook2": Layout("YouCook2", "video_ret/YouCook2", "id", _video, "sentence"),
    "QVHighlight": Layout("QVHighlight", "video_mret/QVHighlight", "video_path", _moment),
    "Charades-STA": Layout("Charades-STA", "video_mret/Charades_STA", "video_path", _moment),
    "MomentSeeker": Layout("MomentSeeker", "video_mret/MomentSeeker", "input_frames", _momentseeker),
}
