"""One thread that owns the models: what many requests ask for at the same time is computed together.

While one batch is computed the next requests gather, so nothing waits for a clock. A batch is filled by tokens, the oldest
request first. Only a request that is larger than a batch is split: it goes to the end of the queue after each of its parts,
so that small ones are not held up by it.
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

from hardwon.errors import BadItems, HardwonError
from hardwon.items import Item
from hardwon.models import Embedder, Pair, Reranker
from hardwon.models.preflight import refusal

log = logging.getLogger(__name__)
NEWEST = 0.3  # weight of the newest batch in the pace
SHARE, MOST_S = 0.25, 0.02  # of the time of a batch, and at most: how long it is waited for clients that were answered together
STUCK_S = 300.0  # a batch that takes longer will not end


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
    """

    name: str
    check: Callable[[Any], str]
    cost: Callable[[Any], int]
    run: Callable[[Sequence[Any]], np.ndarray]

    @classmethod
    def encoding(cls, model: Embedder) -> "Work":
        """Vectors of items."""
        check = _checking(model)
        return cls("encode", lambda item: check((item,)), model.cost, model.encode)

    @classmethod
    def scoring(cls, model: Reranker) -> "Work":
        """Log-odds of pairs."""
        return cls("score", _checking(model), model.cost, model.score_pairs)


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

    def prepare(self) -> bool:
        """Look at every row; says whether the job goes on."""
        if self.future.cancelled():
            return False
        try:
            for n, row in enumerate(self.rows):
                if reason := self.work.check(row):
                    raise Unusable(reason, n)
                self.costs.append(self.work.cost(row))
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
    """The thread.

    Args:
        tokens: of a batch, about; a row that is larger makes a batch of its own.
        computed: called after every batch with the name of its work and how many requests, rows and tokens it held.
    """

    def __init__(self, tokens: int, computed: Callable[[str, int, int, int], object]):
        self._tokens, self._computed = tokens, computed
        self._arrived: deque[_Job] = deque()
        self._ready: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._closed, self._since, self._pace = False, 0.0, 0.0
        self._thread = threading.Thread(target=self._run, name="hardwon-worker", daemon=True)
        self._thread.start()

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
        since = self._since
        return self._thread.is_alive() and not (since and time.monotonic() - since > STUCK_S)

    def close(self) -> None:
        """Finish what has been accepted, then end."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._arrived or self._ready or self._closed):
                    self._wake.wait()
                if self._closed and not self._arrived and not self._ready:
                    return
                arrived = list(self._arrived)
                self._arrived.clear()
            self._ready += [job for job in arrived if job.prepare()]
            if parts := self._batch():
                self._since = time.monotonic()
                self._compute(parts)
                took, self._since = time.monotonic() - self._since, 0.0
                each = took / len(parts)
                self._pace = each if not self._pace else NEWEST * each + (1 - NEWEST) * self._pace
                self._ready += [job for job, _, end in parts if end < len(job.rows) and not job.future.done()]
                self._gather(len(parts), min(SHARE * took, MOST_S))

    def _gather(self, answered: int, most: float) -> None:
        """Wait a moment for clients that ask again: without it, they would fall into two halves that take turns."""
        end = time.monotonic() + most
        with self._wake:
            hoped = len(self._ready) + len(self._arrived) + answered
            while len(self._ready) + len(self._arrived) < hoped and not self._closed and (left := end - time.monotonic()) > 0:
                self._wake.wait(left)

    def _batch(self) -> list[_Part]:
        """What is computed next: the oldest job and others of its kind."""
        parts: list[_Part] = []
        left, others = self._tokens, []
        while self._ready:
            job = self._ready.popleft()
            if job.future.done():  # cancelled
                continue
            start = end = 0
            if not parts or job.work is parts[0][0].work:
                start, end = job.take(left, self._tokens)
            if end > start:
                parts.append((job, start, end))
                left -= sum(job.costs[start:end])
            else:
                others.append(job)
        self._ready += others
        return parts

    def _compute(self, parts: list[_Part]) -> None:
        """Answer jobs; of those that fail together, each is answered for itself."""
        rows = [row for job, start, end in parts for row in job.rows[start:end]]
        work = parts[0][0].work
        try:
            values = work.run(rows)
        except BadItems as error:  # damage that only decoding finds; the error names all of it
            self._without(parts, error)
        except Exception as error:  # whatever one request brings, the thread goes on for the others
            if len(parts) == 1:
                parts[0][0].fail(error)
                return
            half = len(parts) // 2
            self._compute(parts[:half])
            self._compute(parts[half:])
        else:
            tokens = sum(sum(job.costs[start:end]) for job, start, end in parts)
            self._computed(work.name, len(parts), len(rows), tokens)
            place = 0
            for job, start, end in parts:
                job.done(values[place : place + end - start])
                place += end - start

    def _without(self, parts: list[_Part], error: BadItems) -> None:
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
            self._compute(good)


def _items(row: Item | Pair) -> tuple[Item, ...]:
    return row if isinstance(row, tuple) else (row,)
