"""Collecting beside others that do the same, and when workers fail; the workers are this process itself."""

import os

import numpy as np
import pytest

from hardwon import shards
from hardwon.errors import HardwonError
from hardwon.search.retrieve import nearest, nearest_below
from hardwon.shards import Job, Output
from hardwon.spread import engines, search, tasks
from hardwon.spread.engines import Workers
from hardwon.spread.search import Asked, nearest_of

TASK = {"kind": "double"}


class Here:
    """A crew that works whenever it is looked at; as real workers, it finds jobs by their task."""

    def __init__(self, below, workers):
        self.below, self.looks = below, 0

    def check(self, job):
        self.looks += 1
        assert self.looks < 50, "nobody comes to an end"
        for file in self.below.glob("*/task.json"):
            found, task = Job.open(file.parent)
            try:
                do = tasks.TASKS[task["kind"]](task)
            except OSError:
                continue  # a real worker ends, and is replaced
            shards.work(found, do)

    def stop(self):
        pass


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(engines, "_Local", Here)
    monkeypatch.setattr(tasks, "TASKS", {**tasks.TASKS, "double": lambda task: double})


def double(rows):
    return Output({"twice": np.array([2 * row for row in rows])})


def doubled(below):
    """The outputs of three shards, as they come."""
    for output in engines.spread(below, TASK, rows=[[1], [2], [3]], workers=Workers(1), entry=tasks.by_ray):
        yield output.arrays["twice"].tolist()


def test_two_collect_the_same_and_one_is_done_first(tmp_path):
    """The first one takes what the second was waiting for, and clears the folder away."""
    second = doubled(tmp_path)
    made = [next(second)]
    assert list(doubled(tmp_path)) == [[2], [4], [6]]
    assert [*made, *second] == [[2], [4], [6]]
    assert list(tmp_path.iterdir()) == []


def test_the_next_run_tries_once_more(tmp_path):
    job = Job.create(shards.folder_of(tmp_path, TASK), TASK)
    job.put([2])
    for _ in range(shards.DEATHS):
        os.utime(job.claim("gone.1.1").path, (0, 0))
        job.recover()
    with pytest.raises(HardwonError, match=r"5 workers died over it .* Run again to try once more"):
        list(doubled(tmp_path))
    assert list(doubled(tmp_path)) == [[2], [4], [6]]


class TestNearest:
    @pytest.fixture
    def vectors(self):
        draw = np.random.default_rng(0)
        made = [draw.standard_normal((count, 8)).astype(np.float32) for count in (4, 9, 9)]
        return [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in made]

    def test_a_ceiling_goes_along(self, tmp_path, vectors):
        queries, pool, _ = vectors
        blocks = [Asked("pool", [0, 1, 2, 3], [[], [3], [], []])]
        found = nearest_of(queries, {"pool": pool}, blocks=blocks, depth=3, workers=Workers(1), below=tmp_path, ceiling=0.2)
        truth = nearest_below(queries, pool, 3, 0.2, exclude=blocks[0].barred)
        assert [f.ids.tolist() for f in found] == [truth.ids.tolist()]
        assert truth.scores.max() < 0.2

    def check(self, below, queries, pool):
        blocks = [Asked("pool", [0, 1], [[], [3]]), Asked("pool", [2, 3], [[], []])]
        found = list(nearest_of(queries, {"pool": pool}, blocks=blocks, depth=3, workers=Workers(1), below=below))
        truth = [nearest(queries[list(b.queries)], pool, 3, exclude=b.barred) for b in blocks]
        assert [f.ids.tolist() for f in found] == [t.ids.tolist() for t in truth]

    def test_two_that_search_different_vectors_at_once(self, tmp_path, vectors, monkeypatch):
        """The second begins in the middle of the first."""
        queries, one, other = vectors
        replacing, writes = search.replacing, []

        @engines.contextlib.contextmanager
        def interrupted(path):
            with replacing(path) as neighbour:
                yield neighbour
            writes.append(path)
            if len(writes) == 1:
                self.check(tmp_path, queries, other)

        monkeypatch.setattr(search, "replacing", interrupted)
        self.check(tmp_path, queries, one)
        assert len(writes) == 2 and list(tmp_path.iterdir()) == []

    def test_vectors_that_another_run_cleared_away_are_written_again(self, tmp_path, vectors, monkeypatch):
        """It searched the same, and was done first."""
        check, gone = Here.check, []

        def clearing(crew, job):
            if not gone:
                gone.extend(tmp_path.glob("vectors-*"))
                gone[0].unlink()
            check(crew, job)

        monkeypatch.setattr(Here, "check", clearing)
        self.check(tmp_path, *vectors[:2])
        assert gone and list(tmp_path.iterdir()) == []
