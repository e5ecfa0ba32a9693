"""Pairs for the server of `servers`, which answers what their texts say, and a judge that asks it through all its faults."""

import collections
import re
from dataclasses import dataclass, replace

import numpy as np

from hardwon.errors import JudgeError
from hardwon.items import Item
from hardwon.models import RemoteJudge, RemoteSettings

QUICK = RemoteSettings(wait_s=0.001, timeout_s=5.0, patience_s=20.0)
FAULTS = ["429", "503", "500", "reset", "slow", "half", "cut", "html", "garbage", "error", "nothing"]


def chance(query, n):
    return round(0.03 + 0.94 * ((37 * query + 11 * n) % 100) / 100, 4)


def asked(queries=4, each=5):
    """Pairs, and the probability of Yes that the server is to give them."""
    made = [
        (Item(text=f"query {q}"), Item(text=f"thing {q} {n} p={chance(q, n)}")) for q in range(queries) for n in range(each)
    ]
    return made, np.array([chance(q, n) for q in range(queries) for n in range(each)])


def right(made, truth, where=None):
    where = np.arange(len(truth)) if where is None else where
    np.testing.assert_allclose(np.exp(made.yes[where]), 0.98 * truth[where], rtol=1e-5)
    np.testing.assert_allclose(np.exp(made.no[where]), 0.98 * (1 - truth[where]), rtol=1e-5)


@dataclass(frozen=True)
class Asked:
    """What came of asking through faults.

    Attributes:
        pairs: that were asked about.
        calls: that it took.
        wrong: pairs without an answer, or with another one's.
        twice: pairs that the server answered more than once.
        books: whether the judge counted what the server did.
        seen: kinds of faults that came up.
    """

    pairs: int
    calls: int
    wrong: int
    twice: int
    books: bool
    seen: set[str]


def through_faults(plan, queries, each, share=0.3):
    """Ask about `queries` x `each` pairs a server that fails in such a share of the calls, in every way."""
    plan.set(faults=FAULTS, share=share, slow_s=3.0)
    pairs, truth = asked(queries, each)
    judge = RemoteJudge(plan.url, settings=replace(QUICK, timeout_s=1.0, concurrency=24))
    made = judge.judge(pairs)
    close = [np.isclose(np.exp(made.yes), 0.98 * truth, rtol=1e-5), np.isclose(np.exp(made.no), 0.98 * (1 - truth), rtol=1e-5)]
    log = plan.log
    answered = collections.Counter(call["text"] for call in log if not call["fault"])
    usage = judge.usage
    books = usage.calls == len(log) and usage.retries == len(log) - len(pairs) and len(answered) == len(pairs) == usage.pairs
    wrong = len(pairs) - int((close[0] & close[1]).sum())
    seen = {call["fault"] for call in log} - {""}
    return Asked(len(pairs), len(log), wrong, sum(n > 1 for n in answered.values()), books, seen)


def spent(plan, budget):
    """Calls that were counted, and calls that came in, when a budget was too small for what was asked."""
    plan.set(faults=["500", "reset"], share=0.3)
    judge = RemoteJudge(plan.url, settings=replace(QUICK, budget=budget, concurrency=4))
    try:
        judge.judge(asked(budget, 1)[0])
    except JudgeError as error:
        assert re.search("budget of", str(error))
    return judge.usage.calls, len(plan.log)
