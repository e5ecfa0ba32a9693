"""Two processes that write the same artifact, full disks, folders that may not be written to."""

import json
import multiprocessing
import os
import resource
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from trials import trials

from hardwon import artifacts
from hardwon.errors import ArtifactError
from hardwon.shards import Job, Output
from hardwon.store import Store


def write(path, who, pause, said, inputs=None):
    """Write an artifact of forty files that say who wrote them."""
    try:
        with artifacts.writing(path, "note", inputs or {"who": who}) as draft:
            said.put((who, "begun"))
            for n in range(40):
                artifacts.write_atomically(draft.path / f"{n}.txt", f"{who} {n}")
                time.sleep(pause)
        said.put((who, "done"))
    except ArtifactError as error:
        said.put((who, str(error)))


def start(*told):
    process = multiprocessing.get_context("fork").Process(target=write, args=told)
    process.start()
    return process


class Said:
    """What writers say, in a file: one that is killed takes no lock along."""

    def __init__(self, path):
        self.path, self.read = path, 0

    def put(self, line):
        with open(self.path, "ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")

    def all(self):
        return [tuple(json.loads(line)) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def get(self):
        """The next that is said."""
        while len(self.all()) <= self.read:
            time.sleep(0.005)
        self.read += 1
        return self.all()[self.read - 1]


@pytest.fixture
def said(tmp_path_factory):
    return Said(tmp_path_factory.mktemp("said") / "lines")


def whole(path, who):
    manifest = artifacts.load(path, "note")
    assert manifest.inputs == {"who": who}
    assert {name: (path / name).read_text() for name in manifest.files} == {f"{n}.txt": f"{who} {n}" for n in range(40)}
    assert sorted(p.name for p in path.iterdir()) == sorted([*manifest.files, "manifest.json"])


@pytest.mark.parametrize("before", [False, True])
def test_the_second_writer_is_told_to_wait(tmp_path, said, before):
    path = tmp_path / "note"
    if before:
        write(path, "earlier", 0, said), said.get(), said.get()
    first = start(path, "first", 0.02, said)
    assert said.get() == ("first", "begun")
    write(path, "second", 0, said)
    who, why = said.get()
    assert who == "second" and "is being written by another process" in why
    first.join()
    whole(path, "first")
    write(path, "second", 0, said)  # now it may
    whole(path, "second")
    assert [p.name for p in tmp_path.iterdir()] == ["note"]  # neither lock nor what was there before


def test_two_that_write_the_same_may_do_so_together(tmp_path, said):
    those = [start(tmp_path / "note", "same", 0.002, said) for _ in range(2)]
    for process in those:
        process.join()
        assert process.exitcode == 0
    assert sorted(said.get()[1] for _ in range(4)) == ["begun", "begun", "done", "done"]
    whole(tmp_path / "note", "same")


def test_a_writer_that_is_killed_leaves_no_lock_that_holds(tmp_path, said):
    first = start(tmp_path / "note", "first", 0.5, said)
    said.get()
    first.kill()
    first.join()
    write(tmp_path / "note", "second", 0, said)
    whole(tmp_path / "note", "second")


def test_never_a_mix(tmp_path, said):
    """Writers that begin at random moments: whoever says that it has written an artifact has written all of it."""
    for n in range(trials(5)):
        path = tmp_path / str(n)
        those = [start(path, who, 0.0005 * (n % 3), said) for who in "abc"]
        for process in those:
            process.join()
        done = [who for who, what in said.all()[said.read :] if what == "done"]
        said.read = len(said.all())
        assert done
        whole(path, done[-1])


@contextmanager
def largest_file(size):
    """No file may become larger: what a full disk does, at a place that one can choose."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


class TestFull:
    def test_a_file_is_the_old_one_or_the_new_one(self, tmp_path):
        artifacts.write_atomically(tmp_path / "a", b"old")
        for size in (0, 1, 4096, 99_999):
            with largest_file(size), pytest.raises(OSError, match="File too large"):
                artifacts.write_atomically(tmp_path / "a", b"x" * 100_000)
            assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"

    def test_an_artifact_is_unfinished_and_goes_on(self, tmp_path):
        path = tmp_path / "note"
        with artifacts.writing(path, "note", {"n": 1}) as draft:
            artifacts.write_atomically(draft.path / "a", b"earlier")
        with (
            pytest.raises(OSError, match="File too large"),
            artifacts.writing(path, "note", {"n": 2}) as draft,
            largest_file(500),
        ):
            artifacts.write_atomically(draft.path / "a", b"a" * 400)
            artifacts.write_atomically(draft.path / "b", b"b" * 600)
        with pytest.raises(ArtifactError, match="unfinished"):
            artifacts.load(path)
        assert (tmp_path / ".note.before" / "a").read_bytes() == b"earlier"  # and the earlier one is there still
        with artifacts.writing(path, "note", {"n": 2}) as draft:
            assert draft.resumed and (draft.path / "a").read_bytes() == b"a" * 400
            artifacts.write_atomically(draft.path / "b", b"b" * 600)
        assert artifacts.load(path).files.keys() == {"a", "b"}

    def test_rows_and_shards_are_there_whole_or_not_at_all(self, tmp_path):
        import numpy as np
        import torch

        store, job = Store(tmp_path / "rows", "vectors", {}), Job.create(tmp_path / "job", {"kind": "x"})
        store.add(["a" * 32], torch.ones(1, 8))
        with largest_file(2000), pytest.raises(OSError, match="File too large"):
            job.write("name", Output({"x": np.zeros(1000)}))
        with largest_file(2000), pytest.raises(Exception, match=r"(?i)file too large|i/o error"):
            store.add(["b" * 32], torch.ones(1, 1000))
        assert list(job.done.iterdir()) == []
        assert Store(tmp_path / "rows", "vectors", {}).rows.keys() == {"a" * 32}
        assert not list((tmp_path / "rows").glob("*.tmp"))

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
    def test_a_small_disk(self, tmp_path):
        """A file system of 64 kB, filled up in the middle of an artifact."""
        import subprocess

        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("this machine lets nobody mount")
        try:
            with pytest.raises(OSError, match="No space left"), artifacts.writing(disk / "note", "note", {"n": 1}) as draft:
                for n in range(100):
                    artifacts.write_atomically(draft.path / f"{n}.txt", b"x" * 4000)
            with pytest.raises(ArtifactError, match="unfinished"):
                artifacts.load(disk / "note")
            kept = list((disk / "note").glob("*.txt"))
            assert 5 < len(kept) < 20 and all(file.stat().st_size == 4000 for file in kept)
        finally:
            subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_may_not_be_written_to(tmp_path):
    """Root may write anywhere, so a place is taken that nobody can write to."""
    for place in ("/proc/self/note", "/sys/kernel/note"):
        with pytest.raises(OSError, match=r"note|lock"), artifacts.writing(Path(place), "note", {"n": 1}):
            pass


def test_what_the_manifest_says_is_what_was_written(tmp_path):
    with artifacts.writing(tmp_path / "note", "note", {"a": 1}) as draft:
        artifacts.write_atomically(draft.path / "a", "x")
    said = json.loads((tmp_path / "note/manifest.json").read_text())
    assert said["files"] == {"a": artifacts.checksum_of(b"x")}
