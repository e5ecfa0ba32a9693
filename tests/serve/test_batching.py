"""The thread that owns the models, with work that the tests hold back and let go."""

import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest
import tiny

from hardwon.errors import BadItem, BadItems
from hardwon.items import Item
from hardwon.serve.batching import Unusable, Work, Worker


class Watched:
    """Work on numbers: -n is its answer. Remembers its batches, and waits until it is let go."""

    def __init__(self, name="negate", held=False):
        self.batches, self.go, self.begun = [], threading.Event(), threading.Event()
        self.bad = {}  # row -> error of a batch that holds it
        if not held:
            self.go.set()
        self.work = Work(name, lambda row: "no" if row == 13 else "", abs, self.run)

    def run(self, rows):
        self.batches.append(list(rows))
        self.begun.set()
        assert self.go.wait(20)
        for row in rows:
            if row in self.bad:
                raise self.bad[row]
        return -np.array(rows, dtype=np.float32)


@pytest.fixture
def heard():
    return []


@pytest.fixture
def worker(heard):
    made = Worker(10, lambda *batch: heard.append(batch))
    yield made
    made.close()


def held(worker, work):
    """Something that is being computed, so that what comes next gathers."""
    first = worker.submit(work.work, [1])
    assert work.begun.wait(20)
    return first


def test_what_gathers_is_computed_together(worker, heard):
    some = Watched(held=True)
    first = held(worker, some)
    jobs = [worker.submit(some.work, [n]) for n in (2, 3, 4, 5)]
    some.go.set()
    assert [job.result(20).values.tolist() for job in jobs] == [[-2], [-3], [-4], [-5]]
    assert first.result(20).values.tolist() == [-1]
    assert some.batches == [[1], [2, 3, 4], [5]]  # ten tokens at most
    assert heard == [("negate", 1, 1, 1), ("negate", 3, 3, 9), ("negate", 1, 1, 5)]
    assert worker.pace() > 0 and worker.healthy


def test_large_requests_make_room_for_small_ones(worker):
    some = Watched(held=True)
    held(worker, some)
    large, small = worker.submit(some.work, [4, 5, 6, 7, 25]), worker.submit(some.work, [1, 1])
    some.go.set()
    assert large.result(20).values.tolist() == [-4, -5, -6, -7, -25] and large.result().tokens == 47
    assert small.result(20).values.tolist() == [-1, -1]
    assert some.batches == [[1], [4, 5], [1, 1, 6], [7], [25]]


def test_kinds_of_work_are_not_mixed(worker):
    some, other = Watched(held=True), Watched("other")
    held(worker, some)
    jobs = [worker.submit(each.work, [n]) for n, each in enumerate((other, some, other, some), 2)]
    some.go.set()
    assert [job.result(20).values.tolist() for job in jobs] == [[-2], [-3], [-4], [-5]]
    assert (some.batches, other.batches) == ([[1], [3, 5]], [[2, 4]])


def test_a_bad_row_answers_its_own_request_only(worker):
    some = Watched(held=True)
    held(worker, some)
    jobs = [worker.submit(some.work, rows) for rows in ([2], [1, 13], [1, 3])]
    some.go.set()
    with pytest.raises(Unusable, match="no") as caught:
        jobs[1].result(20)
    assert caught.value.position == 1
    assert [jobs[n].result(20).values.tolist() for n in (0, 2)] == [[-2], [-1, -3]]
    assert some.batches == [[1], [2, 1, 3]]


def test_a_failure_answers_its_own_request_only(worker, caplog):
    some = Watched(held=True)
    some.bad[2] = ZeroDivisionError("two")
    held(worker, some)
    jobs = [worker.submit(some.work, [n]) for n in (1, 2, 3, 4)]
    some.go.set()
    with pytest.raises(ZeroDivisionError):
        jobs[1].result(20)
    assert [jobs[n].result(20).values.tolist() for n in (0, 2, 3)] == [[-1], [-3], [-4]]
    assert "ZeroDivisionError" in caplog.text
    assert worker.submit(some.work, [5]).result(20).values.tolist() == [-5]  # the thread goes on


def test_damage_that_only_decoding_finds(worker):
    good, bad = Item("a"), Item("b")
    seen = []

    def run(rows):
        seen.append(list(rows))
        if bad in rows:
            raise BadItems([BadItem(bad, "damaged")], "some")
        return np.ones(len(rows), dtype=np.float32)

    gate = Watched(held=True)
    held(worker, gate)
    work = Work("encode", lambda row: "", lambda row: 1, run)
    jobs = [worker.submit(work, rows) for rows in ([good], [good, bad], [good, good])]
    gate.go.set()
    with pytest.raises(Unusable, match="damaged") as caught:
        jobs[1].result(20)
    assert caught.value.position == 1
    assert [len(jobs[n].result(20).values) for n in (0, 2)] == [1, 2]
    assert seen == [[good, good, bad, good, good], [good, good, good]]  # once more, and together


def test_an_error_about_other_items_does_not_go_round(worker):
    def run(rows):
        raise BadItems([BadItem(Item("somebody else's"), "damaged")], "some")

    work = Work("encode", lambda row: "", lambda row: 1, run)
    with pytest.raises(BadItems):
        worker.submit(work, [Item("a")]).result(20)


def test_who_is_gone_is_not_computed(worker):
    some, other = Watched(held=True), Watched("other", held=True)
    held(worker, some)
    gone, begun, waiting, left = (worker.submit(other.work, rows) for rows in ([2], [9], [8], [3]))
    assert gone.cancel()
    some.go.set()
    assert other.begun.wait(20)  # the batch is [9]; the others have been looked at and wait for the next
    assert waiting.cancel()
    other.go.set()
    assert begun.result(20).values.tolist() == [-9] and left.result(20).values.tolist() == [-3]
    assert other.batches == [[9], [3]]
    with pytest.raises(CancelledError):
        gone.result()


def test_closing_finishes_what_was_accepted():
    worker, some = Worker(10, lambda *batch: None), Watched(held=True)
    held(worker, some)
    jobs = [worker.submit(some.work, [9, 9]) for _ in range(5)]
    closing = threading.Thread(target=worker.close)
    closing.start()
    while not worker._closed:
        time.sleep(0.001)
    with pytest.raises(RuntimeError, match="closed"):
        worker.submit(some.work, [1])
    assert worker.healthy
    some.go.set()
    closing.join(20)
    assert all(job.done() and len(job.result().values) == 2 for job in jobs)
    assert not worker.healthy


def test_a_batch_that_does_not_end(worker, monkeypatch):
    some = Watched(held=True)
    first = held(worker, some)
    monkeypatch.setattr("hardwon.serve.batching.STUCK_S", 0.0)
    assert not worker.healthy
    some.go.set()
    first.result(20)


def test_the_work_of_models(vlm, worker):
    whole = tiny.encoded(tiny.draw("red", "square"))
    place = whole.index(b"IDAT") + 8
    broken = Item(images=(whole[:place] + bytes(20) + whole[place + 20 :],))
    work = Work.encoding(vlm)
    gate = Watched(held=True)
    held(worker, gate)
    jobs = [worker.submit(work, rows) for rows in ([Item("a")], [Item("b"), broken], [Item(images=(whole,))])]
    gate.go.set()
    with pytest.raises(Unusable, match="broken") as caught:
        jobs[1].result(20)
    assert caught.value.position == 1
    for job, items in ((jobs[0], [Item("a")]), (jobs[2], [Item(images=(whole,))])):
        assert np.abs(job.result(20).values - vlm.encode(items)).max() < 1e-5
    with pytest.raises(Unusable, match="web page"):
        worker.submit(work, [Item(images=(b"<html>",))]).result(20)
