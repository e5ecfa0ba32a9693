"""Answers that were paid for are kept when a server fails in the middle of a batch: a real process on loopback, two runs."""

import contextlib
import itertools
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import servers
from asking import QUICK

from hardwon.errors import JudgeError, Unfinished
from hardwon.items import Candidate, Example, Item
from hardwon.mining import Mining, judging, mine
from hardwon.models import RecordedJudge, RemoteJudge, record

# The candidate alone decides what the server says, so it cannot tell gold from random.
SETTINGS = Mining(depth=5, keep=4, min_auc=0.0, max_unusable=0.5)
AT_ONCE = 4
MOST = replace(QUICK, concurrency=AT_ONCE)
CALM = []


@pytest.fixture(scope="module")
def named():
    """A plan of the server by its name."""
    with servers.fake_server() as address:
        yield lambda name: servers.Plan(address, name).set()


@pytest.fixture
def plan(named, request):
    return named(request.node.name)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(judging, "BATCH", 100)


def examples():
    chances = [round(0.05 + 0.9 * ((7 * n) % 17) / 17, 3) for n in range(16)]
    things = [Candidate(Item(text=f"thing {n} p={p}"), origin="gold") for n, p in enumerate(chances)]
    return [Example(Item(text=f"query {n}"), (thing,)) for n, thing in enumerate(things)]


@pytest.fixture
def run(encoder, tmp_path):
    """Mine with the answers that are kept, if there are any."""
    return lambda judge, store=tmp_path: mine(examples(), encoder(dim=3), judge, settings=SETTINGS, store=store)


def answered(plan):
    """How often each pair was answered."""
    return Counter(call["text"] for call in plan.log if not call["fault"])


@pytest.fixture
def calm(run, named):
    """What is mined where nothing fails, and how many pairs that takes."""
    if not CALM:
        judge = RemoteJudge(named("calm").url, settings=MOST)
        CALM.extend([run(judge, None), judge.usage.pairs])
    return CALM


def test_a_budget_that_is_used_up(plan, run, calm):
    """A batch and a part of the next are paid for."""
    truth, total = calm
    assert total > 110
    runs = []
    for budget, end in ((80, pytest.raises(JudgeError, match="budget of 80 calls")), (None, contextlib.nullcontext())):
        judge = RemoteJudge(plan.set().url, settings=replace(MOST, budget=budget))
        with end:
            assert run(judge) == truth
        runs.append(answered(plan))
    assert sum(runs[0].values()) > 80 - AT_ONCE
    assert len(runs[0] & runs[1]) <= AT_ONCE  # those under way when it stopped
    assert len(runs[0] | runs[1]) == total


def test_a_server_that_dies(run, plan, calm):
    """Pairs under way are tried more often than one that is given up, and are not: nobody was there to be asked."""
    with contextlib.ExitStack() as alive:
        address = alive.enter_context(servers.fake_server())
        dying = RemoteJudge(f"{address}/dying/v1", settings=replace(MOST, tries=5, patience_s=0.5))

        def kill():
            deadline = time.monotonic() + 60
            while dying.usage.pairs < 80 and time.monotonic() < deadline:
                time.sleep(0.001)
            alive.close()

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(JudgeError, match="has given no usable answer for"):
            run(dying)
        killer.join()
    paid = dying.usage.pairs
    assert paid >= 80
    assert dying.usage.unusable == 0
    assert run(RemoteJudge(plan.url, settings=MOST)) == calm[0]
    assert len(plan.log) == calm[1] - paid  # no answer that had come was asked for again


def test_too_many_unusable_answers_of_a_server(plan, run):
    plan.set(script=[""] * 80 + ["body"] * 10_000, body="{}")
    with pytest.raises(JudgeError, match=r"more than RemoteSettings\.max_unusable=0\.02 allows"):
        run(RemoteJudge(plan.url, settings=MOST))
    first = answered(plan)
    run(RemoteJudge(plan.set().url, settings=MOST))
    assert sum(first.values()) == 80
    assert not first & answered(plan)


def test_what_was_answered_comes_with_the_error_and_is_recorded(plan, tmp_path):
    pairs = [(Item(text=f"q{q}"), Item(text=f"thing {n} p={n / 20}")) for q, n in itertools.product(range(4), range(1, 11))]
    judge = RemoteJudge(plan.url, settings=replace(MOST, budget=25))
    with pytest.raises(Unfinished, match="budget of 25 calls") as stopped:
        record(judge, tmp_path / "said.jsonl").judge([*pairs, *pairs])
    error = stopped.value
    assert 25 - AT_ONCE < len(error.pairs) == len(set(error.pairs)) == len(error.said.yes) <= 25
    truth = RemoteJudge(plan.url, settings=MOST).judge(list(error.pairs))
    assert (
        error.said.yes.tolist() == truth.yes.tolist() == RecordedJudge(tmp_path / "said.jsonl").judge(error.pairs).yes.tolist()
    )
