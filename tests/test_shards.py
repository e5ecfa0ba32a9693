import itertools
import json
import multiprocessing
import os
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trials import trials

from hardwon import shards
from hardwon.errors import ArtifactError
from hardwon.shards import Job, Output

TASK = {"kind": "double", "text": "é"}


def double(rows):
    return Output({"twice": np.array([2 * row for row in rows])}, {"said": "yes"})


@pytest.fixture
def job(tmp_path):
    return Job.create(tmp_path / "job", TASK)


def test_work_is_done_once_and_read_back(job):
    names = [job.put([n, n + 1]) for n in range(0, 10, 2)]
    assert [job.put([n, n + 1]) for n in range(0, 10, 2)] == names  # what is there is not put twice
    assert not job.idle() and shards.work(job, double) == 5 and job.idle()
    found = [job.output(name) for name in names]
    assert [output.arrays["twice"].tolist() for output in found] == [[2 * n, 2 * n + 2] for n in range(0, 10, 2)]
    assert found[0].notes == {"said": "yes"}
    assert shards.work(job, double) == 0
    for name in names:
        job.forget(name)
    job.close()
    assert not job.folder.exists()


def test_a_job_is_found_again(job):
    again, task = Job.open(job.folder)
    assert task == TASK and again.lease_s == job.lease_s
    assert shards.folder_of(job.folder, TASK) == shards.folder_of(job.folder, dict(reversed(TASK.items())))


@pytest.mark.parametrize("damage", ["", "{", "[]", "3", '{"kind": "x"}', '{"lease_s": "a"}', '{"lease_s": null}'])
def test_a_task_that_cannot_be_read(job, damage):
    (job.folder / "task.json").write_text(damage)
    with pytest.raises(ArtifactError, match="holds no work"):
        Job.open(job.folder)


def test_a_folder_that_another_one_cleared_away_stands_again(job):
    """Two collect the same, and the first is done: workers find the second one's shards all the same."""
    other = Job.create(job.folder, TASK)
    job.close()
    assert not job.folder.exists()
    name = other.put([1])
    other.stand()
    found, task = Job.open(job.folder)
    assert task == TASK and shards.work(found, double) == 1 and other.output(name).arrays["twice"].tolist() == [2]
    found.stand()  # who only helps knows of no task
    job.close()


def test_only_one_claims(job):
    name = job.put([1])
    assert [job.claim(worker) is None for worker in "abc"] == [False, True, True]
    assert job.known(name) and not job.idle()


def test_a_silent_worker_is_given_up_and_does_no_harm(tmp_path):
    job = Job.create(tmp_path / "job", TASK, lease_s=0.2)
    name = job.put([3])
    slow = job.claim("elsewhere.1.2")  # of another machine: nobody can see whether it lives
    assert job.recover() == 0
    with slow.alive():
        time.sleep(0.5)
        assert job.recover() == 0  # it gives signs of life
    time.sleep(0.3)
    assert job.recover() == 1
    other = job.claim("elsewhere.3.4")
    assert other.rows() == [3]
    job.write(name, double([3]))
    other.end()
    job.write(name, double([3]))  # the first one comes to its end after all
    slow.end()
    assert len(list(job.done.iterdir())) == 1 and job.idle()


def test_the_dead_are_noticed_at_once(job):
    name = job.put([1])
    process = multiprocessing.get_context("fork").Process(target=lambda: job.claim(shards.worker_id()))
    process.start()
    process.join()
    assert next(job.claimed.iterdir()).name.startswith(f"{name}@") and job.recover() == 1
    mine = job.claim(shards.worker_id())
    assert job.recover() == 0  # we live
    (host, pid, _) = mine.path.name.partition("@")[2].split(".")
    mine.path.rename(job.claimed / f"{name}@{host}.{pid}.1")  # another process had our number before
    assert job.recover() == 1


def test_killed_between_writing_and_forgetting(job):
    name = job.put([1])
    claim = job.claim("gone.1.1")
    job.write(name, double([1]))
    os.utime(claim.path, (0, 0))
    assert job.recover() == 0 and job.idle() and job.output(name)


def test_a_shard_over_which_workers_die_is_given_up(job):
    name = job.put([1])
    for _ in range(shards.DEATHS):
        os.utime(job.claim("gone.1.1").path, (0, 0))
        job.recover()
    assert job.failure(name)[0] == "died" and job.idle()
    job.forget(name)
    assert job.put([1]) == name and not job.idle()  # another run tries again


def test_work_that_fails_says_why(job):
    names = [job.put([n]) for n in range(3)]
    assert shards.work(job, lambda rows: double([1 / rows[0]])) == 3
    assert job.failure(names[0]) == ("error", "ZeroDivisionError: division by zero")
    assert job.output(names[1]) and job.failure(names[1]) is None


@pytest.mark.parametrize("kind", ["empty", "cut", "flipped", "longer"])
def test_damaged_outputs_are_as_if_they_had_never_been(job, kind):
    name = job.put([1, 2])
    shards.work(job, double)
    (file,) = job.done.iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= kind == "flipped"
    file.write_bytes({"empty": b"", "cut": data[:-3], "flipped": data, "longer": data + b"x"}[kind])
    assert job.output(name) is None and not job.known(name)
    job.put([1, 2])
    assert shards.work(job, double) == 1 and job.output(name).arrays["twice"].tolist() == [2, 4]


def test_damaged_rows_are_noticed(job):
    name = job.put([1, 2])
    (job.todo / name).write_text("[7]\n")
    shards.work(job, double)
    assert "has changed since" in job.failure(name)[1]


@settings(max_examples=trials(20), deadline=None)
@given(rows=st.lists(st.lists(st.one_of(st.integers(), st.text(), st.none(), st.floats(allow_nan=False))), max_size=5))
def test_rows_come_as_they_were_put(rows, tmp_path_factory):
    job = Job.create(tmp_path_factory.mktemp("job"), TASK)
    name = job.put(rows)
    assert json.dumps(job.claim("me").rows()) == json.dumps(rows) and shards.name_of(rows) == name


def racing(folder, count):
    job, _ = Job.open(folder)

    def do(rows):
        with open(folder / f"log-{os.getpid()}", "a") as file:
            file.write(f"{rows[0]}\n")
        return double(rows)

    shards.work(job, do)


def test_many_at_once_never_do_the_same(tmp_path):
    """Six processes race for 120 shards."""
    job, count = Job.create(tmp_path, TASK), trials(120)
    names = [job.put([n]) for n in range(count)]
    those = [multiprocessing.get_context("fork").Process(target=racing, args=(tmp_path, count)) for _ in range(6)]
    for process in those:
        process.start()
    for process in those:
        process.join(120)
        assert process.exitcode == 0
    begun = Counter(itertools.chain.from_iterable(log.read_text().split() for log in tmp_path.glob("log-*")))
    assert len(begun) == begun.total() == count
    assert all(job.output(name) for name in names)
