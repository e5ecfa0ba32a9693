"""The thread that owns the models, with work that the tests hold back and let go."""

import random
import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest
import tiny
import torch

from hardwon.errors import BadItem, BadItems
from hardwon.items import Item
from hardwon.serve.batching import Unusable, Work, Worker, lanes_on


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


@pytest.fixture
def cores():
    """Two of them, whatever the machine; the lanes set the number of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


@pytest.fixture
def lanes(cores, monkeypatch):
    """Two lanes that share anything above four tokens."""
    monkeypatch.setattr("hardwon.serve.batching.SHARED", 4)
    made = Worker(100, lambda *batch: None, lanes=2)
    yield made
    made.close()


class TestLanes:
    def test_two_batches_at_a_time_each_with_half_of_the_cores(self, lanes):
        met, threads, before = threading.Barrier(3), [], Watched(held=True)

        def run(rows):
            threads.append(torch.get_num_threads())
            met.wait(20)  # both lanes, and the test
            return np.array(rows, dtype=np.float32)

        work = Work("count", lambda row: "", abs, run)
        held(lanes, before)
        jobs = [lanes.submit(work, [n]) for n in (8, 9)]
        before.go.set()
        met.wait(20)
        assert [job.result(20).values.tolist() for job in jobs] == [[8], [9]]
        assert threads == [1, 1]

    def test_each_lane_has_models_of_its_own(self, lanes):
        met, seen = threading.Barrier(2), []

        def running(name):
            def run(rows):
                seen.append((name, threading.current_thread().name))
                met.wait(20)
                return np.array(rows, dtype=np.float32)

            return run

        twins = Work("count", lambda row: "", abs, running("second"))
        work = Work("count", lambda row: "", abs, running("first"), (twins,))
        met_first = Watched(held=True)
        held(lanes, met_first)
        jobs = [lanes.submit(work, [n]) for n in (8, 9)]
        met_first.go.set()
        for job in jobs:
            job.result(20)
        assert sorted(seen) == [("first", "hardwon-worker-0"), ("second", "hardwon-worker-1")]

    def test_what_is_alone_has_all_the_cores_and_is_not_disturbed(self, lanes, cores):
        some, threads = Watched(held=True), []
        other = Work("count", lambda row: "", abs, lambda rows: threads.append(torch.get_num_threads()) or np.zeros(len(rows)))
        alone = Work("alone", lambda row: "", abs, lambda rows: threads.append(torch.get_num_threads()) or some.run(rows))
        first = lanes.submit(alone, [1])
        assert some.begun.wait(20)
        late = lanes.submit(other, [2])
        time.sleep(0.05)
        assert threads == [cores] and not late.done()  # the other lane waits
        some.go.set()
        assert first.result(20) and late.result(20)
        assert threads == [cores, cores]

    def test_little_is_not_shared(self, lanes):
        some = Watched(held=True)
        held(lanes, some)
        jobs = [lanes.submit(some.work, [1]) for _ in range(4)]
        some.go.set()
        for job in jobs:
            job.result(20)
        assert some.batches == [[1], [1, 1, 1, 1]]

    def test_every_request_gets_its_own_answer(self, lanes):
        """Many clients, requests of all sizes (some larger than a batch), some that fail and some that are given up."""
        wrong, answered = [], []

        def run(rows):
            if any(row == 77 for row in rows):
                raise ZeroDivisionError
            time.sleep(0.0005)
            return -np.array(rows, dtype=np.float32)

        work = Work("negate", lambda row: "no" if row == 13 else "", abs, run)

        def client(seed):
            rng = random.Random(seed)
            for _ in range(60):
                rows = [rng.choice((1, 2, 3, 5, 8, 40, 60)) for _ in range(rng.choice((1, 1, 1, 4, 9)))]
                bad = rng.choice((0, 0, 0, 0, 13, 77))
                if bad:
                    rows[rng.randrange(len(rows))] = bad
                job = lanes.submit(work, rows)
                if rng.random() < 0.1:
                    job.cancel()
                    continue
                try:
                    got = job.result(20).values.tolist()
                except (Unusable, ZeroDivisionError) as error:
                    got = type(error)
                hoped = {0: [-row for row in rows], 13: Unusable, 77: ZeroDivisionError}[bad]
                answered.append(bad)
                wrong.extend([(rows, got)] if got != hoped else [])

        clients = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
        for each in clients:
            each.start()
        for each in clients:
            each.join(60)
        assert not any(each.is_alive() for each in clients) and not wrong
        assert len(answered) > 350 and {0, 13, 77} == set(answered)
        lanes.close()
        assert not lanes._busy and not lanes._alone and not lanes._gathering and not lanes._ready

    def test_closing_finishes_what_was_accepted(self, cores):
        worker, some = Worker(10, lambda *batch: None, lanes=2), Watched(held=True)
        held(worker, some)
        jobs = [worker.submit(some.work, [9, 9]) for _ in range(5)]
        closing = threading.Thread(target=worker.close)
        closing.start()
        some.go.set()
        closing.join(20)
        assert all(job.done() and len(job.result().values) == 2 for job in jobs)
        assert not worker.healthy


def test_lanes_of_devices(cores):
    assert lanes_on("cpu") == 2 and lanes_on("cuda") == 1
    torch.set_num_threads(1)
    assert lanes_on("cpu") == 1
