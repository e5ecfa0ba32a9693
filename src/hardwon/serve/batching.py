"""Threads that own the models: what many requests ask for at the same time is computed together.

While one batch is computed the next requests gather, so nothing waits for a clock. A batch is filled by tokens, the oldest
request first. Only a request that is larger than a batch is split: it goes to the end of the queue after each of its parts,
so that small ones are not held up by it.

On a CPU there are two lanes, each a thread with a twin of the models and half of the cores: while one reads tokens or waits for
its clients to ask again, the other computes. (One lane on all cores left 28 % of two cores idle with 32 clients.) A batch with
nothing beside it and nothing behind it has all the cores, and whatever comes meanwhile waits for its end: a batch on all cores
beside another is slower than one after the other.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hardwon.errors import BadItems, HardwonError
from hardwon.items import Item
from hardwon.models import Embedder, Pair, Reranker
from hardwon.models.preflight import refusal

log = logging.getLogger(__name__)
NEWEST = 0.3  # weight of the newest batch in the pace
SHARE, MOST_S = 0.25, 0.02  # of the time of a batch, and at most: how long it is waited for clients that were answered together
STUCK_S = 300.0  # a batch that takes longer will not end
LANES = 2  # on a CPU
SHARED = 128  # tokens from which on a batch is shared between lanes: below, the calls cost more than what they compute


def lanes_on(device: str) -> int:
    """How many batches are computed at a time."""
    return min(LANES, torch.get_num_threads()) if device == "cpu" else 1


class Unusable(Exception):
    """Something in a request that the model cannot read.

    Attributes:
        position: among the rows of the request; None if that is not known.
    """

    def __init__(self, reason: str, position: int | None = None):
        super().__init__(reason)
        self.position = position


@dataclass(frozen=True)
class Work:
    """Something a model does, row by row.

    Attributes:
        name: of it.
        check: why a row cannot be read; "" if it can.
        cost: tokens of a row, about.
        run: does it for many rows.
        others: the same for the lanes after the first; with fewer of them than lanes, the last is everybody's.
    """

    name: str
    check: Callable[[Any], str]
    cost: Callable[[Any], int]
    run: Callable[[Sequence[Any]], np.ndarray]
    others: tuple["Work", ...] = ()

    @classmethod
    def encoding(cls, *models: Embedder) -> "Work":
        """Vectors of items; a model for each lane."""
        model, *others = models
        check = _checking(model)
        return cls(
            "encode", lambda item: check((item,)), model.cost, model.encode, tuple(cls.encoding(each) for each in others)
        )

    @classmethod
    def scoring(cls, *models: Reranker) -> "Work":
        """Log-odds of pairs; a model for each lane."""
        model, *others = models
        return cls("score", _checking(model), model.cost, model.score_pairs, tuple(cls.scoring(each) for each in others))

    def at(self, lane: int) -> "Work":
        """As a lane does it."""
        return (self, *self.others)[min(lane, len(self.others))]


def _checking(model: Embedder | Reranker) -> Callable[[Sequence[Item]], str]:
    reads_text = "text" in model.body.modalities  # asked once: it takes longer than a look at a text

    def reason(row: Sequence[Item]) -> str:
        # Of text alone a model of text has nothing to say.
        plain = reads_text and not any(item.pictures for item in row)
        return "" if plain else refusal(model.body, row)

    return reason


@dataclass(frozen=True)
class Done:
    """What came of the rows of a request.

    Attributes:
        values: a vector or number for each row, float32.
        tokens: of all rows, about.
    """

    values: np.ndarray
    tokens: int


class _Job:
    def __init__(self, work: Work, rows: Sequence[Any]):
        self.work, self.rows = work, rows
        self.costs: list[int] = []
        self.made: list[np.ndarray] = []
        self.begun = 0  # rows that are done or in the batch under way
        self.future: Future[Done] = Future()

    def prepare(self, lane: int) -> bool:
        """Look at every row; says whether the job goes on."""
        if self.future.cancelled():
            return False
        work = self.work.at(lane)
        try:
            for n, row in enumerate(self.rows):
                if reason := work.check(row):
                    raise Unusable(reason, n)
                self.costs.append(work.cost(row))
        except Exception as error:  # whatever one request brings, the thread goes on for the others
            self.fail(error)
            return False
        return True

    def take(self, tokens: int, batch: int) -> tuple[int, int]:
        """The next rows that fit into so many tokens, as a range; of what fits into a batch all or nothing.

        A whole batch takes at least one row.
        """
        start = self.begun
        if sum(self.costs) <= batch and sum(self.costs) > tokens:
            return start, start
        whole = tokens == batch
        while self.begun < len(self.rows) and (self.costs[self.begun] <= tokens or (whole and self.begun == start)):
            tokens -= self.costs[self.begun]
            self.begun += 1
        return start, self.begun

    def done(self, values: np.ndarray) -> None:
        """Some rows are done; all of them answer the request."""
        self.made.append(values)
        if self.begun == len(self.rows) and self.future.set_running_or_notify_cancel():
            self.future.set_result(Done(np.concatenate(self.made), sum(self.costs)))

    def fail(self, error: Exception) -> None:
        """The request is answered with an error."""
        if not isinstance(error, (Unusable, HardwonError)):
            log.error("%s failed: %s", self.work.name, type(error).__name__)  # the traceback is for who waits for the future
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


_Part = tuple[_Job, int, int]


class Worker:
    """The threads.

    Args:
        tokens: of a batch, about; a row that is larger makes a batch of its own.
        computed: called after every batch with the name of its work and how many requests, rows and tokens it held.
        lanes: how many batches are computed at a time.
    """

    def __init__(self, tokens: int, computed: Callable[[str, int, int, int], object], lanes: int = 1):
        self._tokens, self._computed, self._lanes, self._cores = tokens, computed, lanes, torch.get_num_threads()
        self._arrived: deque[_Job] = deque()
        self._ready: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._closed, self._pace = False, 0.0
        self._busy: dict[int, int] = {}  # tokens that each lane computes, 0 while it chooses them
        self._since: dict[int, float] = {}  # when it began
        self._alone, self._gathering = False, 0  # whether a batch has all the cores; lanes that wait for their clients
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name=f"hardwon-worker-{lane}", daemon=True)
            for lane in range(lanes)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Work, rows: Sequence[Any]) -> "Future[Done]":
        """Queue the rows of a request: items or pairs, as its work takes them.

        Cancelling the future drops what has not been computed.

        Raises:
            RuntimeError: the worker is closed.
        """
        job = _Job(work, rows)
        if not rows:
            raise ValueError("no rows")
        with self._wake:
            if self._closed:
                raise RuntimeError("the worker is closed")
            self._arrived.append(job)
            self._wake.notify()
        return job.future

    def pace(self) -> float:
        """Seconds that a request has taken lately."""
        return self._pace

    @property
    def healthy(self) -> bool:
        """Whether it computes, or could."""
        stuck = any(time.monotonic() - since > STUCK_S for since in list(self._since.values()))
        return all(thread.is_alive() for thread in self._threads) and not stuck

    def close(self) -> None:
        """Finish what has been accepted, then end."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self, lane: int) -> None:
        gathered = False
        while (arrived := self._awaited(lane, gathered)) is not None:
            good = [job for job in arrived if job.prepare(lane)]
            parts, alone = self._chosen(lane, good)
            gathered = bool(parts)
            if parts:
                if self._lanes > 1:
                    torch.set_num_threads(self._cores if alone else max(1, self._cores // self._lanes))
                self._since[lane] = start = time.monotonic()
                self._compute(parts, lane)
                del self._since[lane]
                took = time.monotonic() - start
                self._finished(lane, parts, took / len(parts) / (1 if alone else self._lanes))
                self._gather(len(parts), min(SHARE * took, MOST_S))

    def _awaited(self, lane: int, gathered: bool) -> list[_Job] | None:
        """What has arrived, once there is something to do and this lane may do it; None: there never will be."""
        with self._wake:
            while True:
                waiting = self._arrived or self._ready
                if waiting and not self._alone and (gathered or not self._gathering):
                    break
                if self._closed and not waiting:
                    return None
                gathered = gathered and bool(waiting)  # who has waited in vain has no right to be the next
                self._wake.wait()
            self._busy[lane] = 0
            arrived = list(self._arrived)
            self._arrived.clear()
            return arrived

    def _chosen(self, lane: int, good: Sequence[_Job]) -> tuple[list[_Part], bool]:
        """The next batch, and whether it has all the cores."""
        with self._wake:
            self._ready += good
            parts = self._batch()
            self._busy[lane] = sum(sum(job.costs[start:end]) for job, start, end in parts)
            self._alone = bool(parts) and not self._ready and not self._arrived and len(self._busy) == 1
            if not parts:
                del self._busy[lane]
            if self._lanes > 1:
                self._wake.notify_all()
            return parts, self._alone

    def _finished(self, lane: int, parts: Sequence[_Part], each: float) -> None:
        with self._wake:
            del self._busy[lane]
            self._alone = False
            self._pace = each if not self._pace else NEWEST * each + (1 - NEWEST) * self._pace
            self._ready += [job for job, _, end in parts if end < len(job.rows) and not job.future.done()]

    def _gather(self, answered: int, most: float) -> None:
        """Wait a moment for clients that ask again: without it, they would fall into halves that take turns."""
        end = time.monotonic() + most
        with self._wake:
            self._gathering += 1
            hoped = len(self._ready) + len(self._arrived) + answered
            while len(self._ready) + len(self._arrived) < hoped and not self._closed and (left := end - time.monotonic()) > 0:
                self._wake.wait(left)
            self._gathering -= 1
            if self._lanes > 1:
                self._wake.notify_all()

    def _batch(self) -> list[_Part]:
        """What is computed next: the oldest job and others of its kind; no more than a lane's share of what there is."""
        parts: list[_Part] = []
        there = sum(self._busy.values()) + sum(sum(job.costs[job.begun :]) for job in self._ready)
        left, others = self._tokens, []
        if self._lanes > 1:
            left = min(left, max(SHARED, -(-there // self._lanes)))
        while self._ready:
            job = self._ready.popleft()
            if job.future.done():  # cancelled
                continue
            start = end = 0
            if not parts or job.work is parts[0][0].work:
                # The first may fill a batch, whatever the share.
                start, end = job.take(left if parts else self._tokens, self._tokens)
            if end > start:
                parts.append((job, start, end))
                left -= sum(job.costs[start:end])
            else:
                others.append(job)
        self._ready += others
        return parts

    def _compute(self, parts: list[_Part], lane: int) -> None:
        """Answer jobs; of those that fail together, each is answered for itself."""
        rows = [row for job, start, end in parts for row in job.rows[start:end]]
        work = parts[0][0].work.at(lane)
        try:
            values = work.run(rows)
        except BadItems as error:  # damage that only decoding finds; the error names all of it
            self._without(parts, lane, error)
        except Exception as error:  # whatever one request brings, the thread goes on for the others
            if len(parts) == 1:
                parts[0][0].fail(error)
                return
            half = len(parts) // 2
            self._compute(parts[:half], lane)
            self._compute(parts[half:], lane)
        else:
            tokens = sum(sum(job.costs[start:end]) for job, start, end in parts)
            self._computed(work.name, len(parts), len(rows), tokens)
            place = 0
            for job, start, end in parts:
                job.done(values[place : place + end - start])
                place += end - start

    def _without(self, parts: list[_Part], lane: int, error: BadItems) -> None:
        reasons = {bad.item: bad.reason for bad in error.items}
        good = []
        for part in parts:
            job, start, end = part
            found = next((n for n in range(start, end) if not reasons.keys().isdisjoint(_items(job.rows[n]))), None)
            if found is None:
                good.append(part)
            else:
                reason = next(reasons[item] for item in _items(job.rows[found]) if item in reasons)
                job.fail(Unusable(reason, found))
        if len(good) == len(parts):  # it speaks of nothing that was asked for
            for job, _, _ in parts:
                job.fail(error)
        elif good:
            self._compute(good, lane)


def _items(row: Item | Pair) -> tuple[Item, ...]:
    return row if isinstance(row, tuple) else (row,)
