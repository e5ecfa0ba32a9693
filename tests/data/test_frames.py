"""Frames of video files, whole and damaged."""

import random
import shutil
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from damage import mutated
from PIL import Image
from trials import trials

from hardwon.data.frames import extract, frames_of
from hardwon.errors import BadMedia, DataError, MissingExtra


def film(path, count=30, codec="mpeg4", pauses=None, size=(32, 32)):
    """A film whose frames grow brighter; `pauses` are tenths of a second between them, one each if None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    at = 0
    with av.open(str(path), "w") as made:
        stream = made.add_stream(codec, rate=10)
        (stream.width, stream.height), stream.time_base = size, Fraction(1, 10)
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for n in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((*size[::-1], 3), n * 8, np.uint8), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 10)
            at += pauses[n % len(pauses)] if pauses else 1
            made.mux(stream.encode(frame))
        made.mux(stream.encode())


def test_frames_are_read_from_a_film_once(tmp_path):
    film(tmp_path / "videos/a.mp4")
    names = frames_of(tmp_path, "frames/a", "videos/a")
    bright = [Image.open(tmp_path / name).getpixel((16, 16))[0] for name in names]
    # Of 30 frames the 1st, 5th, 9th ... 30th; each is 8 brighter than the one before it.
    assert bright == pytest.approx([8 * n for n in (0, 4, 8, 12, 16, 20, 24, 29)], abs=8)
    (tmp_path / "videos/a.mp4").unlink()
    assert frames_of(tmp_path, "frames/a", "videos/a") == names


def test_a_film_that_two_processes_read_is_read_by_both(tmp_path, monkeypatch):
    film(tmp_path / "a.mp4")
    rename = Path.rename

    def late(ready, folder):
        shutil.copytree(ready, folder)  # the other one was faster
        return rename(ready, folder)

    monkeypatch.setattr(Path, "rename", late)
    assert len(frames_of(tmp_path, "frames/a", "a")) == 8
    assert [path.name for path in (tmp_path / "frames").iterdir()] == ["a"]


def test_frames_that_cannot_be_kept_are_told(tmp_path):
    film(tmp_path / "a.mp4")
    (tmp_path / "frames").write_bytes(b"a file")
    with pytest.raises(DataError, match=r"the frames of .*a\.mp4 cannot be kept in .*frames/a"):
        frames_of(tmp_path, "frames/a", "a")


def test_a_film_that_is_none_is_told(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no film " * 40)
    with pytest.raises(BadMedia, match=r"a\.mp4 cannot be read as a video"):
        frames_of(tmp_path, "frames/a", "a")
    assert not (tmp_path / "frames").exists()


def test_a_missing_package_names_its_extra(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"film")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtra, match=r"pip install 'hardwon\[video\]'"):
        frames_of(tmp_path, "frames/a", "a")


def test_frames_are_counted_whatever_their_pace(tmp_path):
    film(tmp_path / "even.mp4")
    film(tmp_path / "uneven.mp4", pauses=(1, 7, 2))
    even, uneven = (
        [Image.open(tmp_path / name).getpixel((16, 16))[0] for name in frames_of(tmp_path, f"frames/{n}", f"{n}.mp4")]
        for n in ("even", "uneven")
    )
    assert len(even) == 8 and uneven == pytest.approx(even, abs=3)


def test_a_film_without_frames(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as made:  # sound alone
        stream = made.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        made.mux(stream.encode(frame))
        made.mux(stream.encode())
    with pytest.raises(BadMedia, match=r"a\.mp4 cannot be read as a video|holds no frames"):
        frames_of(tmp_path, "frames/a", "a")
    assert not (tmp_path / "frames").exists()


def test_frames_as_large_as_no_picture_may_be(tmp_path):
    film(tmp_path / "a.avi", 1, "mjpeg", size=(8000, 4008))
    with pytest.raises(BadMedia, match=r"a\.avi has frames of 8000 x 4008 pixels, more than 32,000,000: make it smaller"):
        frames_of(tmp_path, "frames/a", "a.avi")


def test_a11_damaged_films(tmp_path):
    """Frames, or an error that names the file; at most two seconds each, and nothing half made."""
    rng = random.Random(1)
    for name in ("a.mp4", "b.mkv", "c.avi"):
        film(tmp_path / name)
    originals = [(tmp_path / name).read_bytes() for name in ("a.mp4", "b.mkv", "c.avi")]
    read, refused = 0, 0
    for n in range(trials(40)):
        path = tmp_path / f"{n}.mp4"
        path.write_bytes(mutated(rng, originals[n % 3], originals[(n + 1) % 3]))
        start = time.perf_counter()
        try:
            extract(path, tmp_path / f"frames-{n}", 8)
        except BadMedia as error:
            assert str(path) in str(error) and not (tmp_path / f"frames-{n}").exists()
            refused += 1
        else:
            made = sorted((tmp_path / f"frames-{n}").iterdir())
            assert 0 < len(made) <= 8 and all(Image.open(file).convert("RGB").size for file in made)
            read += 1
        assert time.perf_counter() - start < 2
    assert min(read, refused) > trials(40) / 10
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
