"""Frames of a video: pictures that are there already, or a few that are sampled from the video's file."""

import re
import tempfile
from pathlib import Path

import numpy as np

from hardwon.data.read_files import PICTURE_SUFFIXES
from hardwon.errors import BadMedia, DataError, MissingExtra
from hardwon.items import resolve
from hardwon.pictures import MAX_PIXELS

FRAMES = 8  # of a video, as MMEB-V2 takes them
VIDEO_SUFFIXES = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v")


def frames_of(root: Path, folder: str, video: str, *, count: int = FRAMES) -> tuple[str, ...]:
    """Paths of a video's frames relative to `root`, evenly spaced, the first and the last one among them.

    They are taken from the pictures in `folder`, sorted by the numbers in their names, all of them where there are fewer.
    Without such a folder they are read from the file and kept in it.

    Args:
        root: folder that both are relative to.
        folder: of the frames.
        video: of the video's file; its suffix may be left out.
        count: how many frames.

    Raises:
        DataError: neither frames nor a file; a folder that frames cannot be written to.
        BadMedia: a file that cannot be read as a video.
        MissingExtra: a file is to be read and PyAV is not installed.
    """
    there = resolve(root, folder)
    if not there.is_dir():
        file = next((path for suffix in ("", *VIDEO_SUFFIXES) if (path := resolve(root, video + suffix)).is_file()), None)
        if file is None:
            raise DataError(f"neither frames in {there} nor a video {root / video}")
        extract(file, there, count)
    names = [path.name for path in there.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.name[0] != "."]
    names.sort(key=_natural)
    if not names:
        raise DataError(f"{there} holds no frames")
    return tuple(f"{folder}/{names[n]}" for n in spaced(len(names), count))


def spaced(total: int, count: int) -> list[int]:
    """`count` positions among `total`, evenly spaced from the first to the last; all where there are fewer."""
    return list(range(total)) if total <= count else np.linspace(0, total - 1, count).astype(int).tolist()


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts "frame_2" before "frame_10"."""
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", name) if part]


def extract(file: Path, folder: Path, count: int) -> None:
    """Write `count` frames of a video's file into a new folder, evenly spaced, as JPEG files: all of them, or no folder.

    Raises:
        BadMedia: the file cannot be read as a video, or its frames are larger than pictures may be.
        DataError: the folder cannot be written.
        MissingExtra: PyAV is not installed.
    """
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        raise MissingExtra("av", "video") from None
    try:
        with av.open(str(file), metadata_errors="ignore") as opened:
            # 0 where FFmpeg does not know the codec: then decoding fails below.
            width, height = (getattr(opened.streams.video[0], side, 0) for side in ("width", "height"))
            if width * height > MAX_PIXELS:
                raise BadMedia(f"{file} has frames of {width} x {height} pixels, more than {MAX_PIXELS:,}: make it smaller")
            total = sum(packet.size > 0 for packet in opened.demux(video=0))
        wanted = set(spaced(total, count))
        with av.open(str(file), metadata_errors="ignore") as opened:
            kept = [frame.to_image() for n, frame in enumerate(opened.decode(video=0)) if n in wanted]
    except (FFmpegError, IndexError, OSError, ValueError) as error:  # ValueError: of PyAV, for damage that FFmpeg let pass
        raise BadMedia(f"{file} cannot be read as a video ({error})") from error
    if not kept:
        raise BadMedia(f"{file} holds no frames")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
            ready = Path(scratch) / "ready"
            ready.mkdir()
            for n, picture in enumerate(kept):
                picture.save(ready / f"{n:04d}.jpg", quality=95)
            ready.rename(folder)  # whole or not at all: a folder that is there is believed
    except OSError as error:
        if not folder.is_dir():  # another process may have been faster
            raise DataError(f"the frames of {file} cannot be kept in {folder} ({error})") from error
