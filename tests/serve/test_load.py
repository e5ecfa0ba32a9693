"""Many clients at a time, clients that go, servers that are told to stop, and requests that make no sense."""

import asyncio
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest
import serving
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import NAME, url_of

from hardwon.items import Item

STATUSES = {200, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 503, 504}


def together(server, requests, clients):
    """Answers of (path, body), from so many clients at a time."""
    made = [None] * len(requests)

    async def work():
        todo = iter(enumerate(requests))
        async with httpx2.AsyncClient(base_url=server.url, timeout=60, trust_env=False, verify=False) as client:

            async def one():
                for n, (path, body) in todo:
                    made[n] = await client.post(path, json=body)

            await asyncio.gather(*(one() for _ in range(clients)))

    asyncio.run(work())
    return made


@pytest.fixture(scope="module")
def narrow(folder, tmp_path_factory):
    """A server that takes four requests at a time, for a second each."""
    limits = ("waiting=4", "timeout_s=1", "wait_s=100")
    told = [part for limit in limits for part in ("--limit", limit)]
    with serving.running(folder, tmp_path_factory.mktemp("narrow") / "log", *told, place="vlm") as made:
        yield made


def test_every_client_gets_its_own_answer(server, model):
    pictures = [(colour, shape) for colour in tiny.COLOURS for shape in tiny.SHAPES]
    words, drawn = sorted({word for pair in pictures for word in pair}), [tiny.draw(*pair) for pair in pictures]
    items, requests = [], []
    for n in range(256):
        text = " ".join(words[(n * step) % len(words)] for step in range(1, 2 + n % 9)) + f" {n}"
        seen = [drawn[n % len(drawn)]] if n % 4 == 0 else []
        items.append([Item(text, tuple(map(tiny.encoded, seen))), *([Item(f"a {n}")] * (n % 3))])
        given = [{"text": text, **({"image": url_of(seen[0])} if seen else {})}, *([f"a {n}"] * (n % 3))]
        requests.append(("/v1/embeddings", {"model": NAME, "input": given}))
        if n % 16 == 0:  # what cannot be used, among the others
            items.append(None)
            requests.append(("/v1/embeddings", {"model": NAME, "input": ["a", {"image": "data:image/png;base64,PGh0bWw+"}]}))
    replies = together(server, requests, 64)
    alone = model.encode([item for each in items if each for item in each])
    place = 0
    for each, reply in zip(items, replies, strict=True):
        assert reply.status_code == (200 if each else 422), reply.text
        if each:
            rows = [row["embedding"] for row in reply.json()["data"]]
            assert len(rows) == len(each)
            assert ((np.array(rows) * alone[place : place + len(each)]).sum(axis=1) > 0.99999).all()
            place += len(each)
    with server.client() as client:
        rows = client.get("/metrics").text.splitlines()
    numbers = dict(row.rsplit(" ", 1) for row in rows if row.startswith("hardwon_batch_requests"))
    batches, requests_ = (float(numbers[f'hardwon_batch_requests_{kind}{{work="encode"}}']) for kind in ("count", "sum"))
    assert requests_ > 2 * batches  # requests were computed together


def test_too_many_are_sent_away(narrow):
    requests = [("/v1/embeddings", {"model": NAME, "input": f"sleep 0.05 {n}"}) for n in range(96)]
    replies = together(narrow, requests, 48)
    done = [reply for reply in replies if reply.status_code == 200]
    away = [reply for reply in replies if reply.status_code == 429]
    assert len(done) >= 4 and away and len(done) + len(away) == len(replies)
    assert all(1 <= int(reply.headers["retry-after"]) <= 60 for reply in away)
    assert {reply.json()["error"]["type"] for reply in away} == {"rate_limit_error"}
    assert narrow.embed("a").status_code == 200


def test_time_is_up(narrow):
    start = time.monotonic()
    reply = narrow.embed("sleep 1.9")
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "timeout")
    assert time.monotonic() - start < 1.8
    time.sleep(1.1)  # a batch under way cannot be stopped
    assert narrow.embed("a").status_code == 200


def test_who_goes_is_forgotten(server):
    with server.client() as client:

        def pending():
            rows = client.get("/metrics").text.splitlines()
            return float(next(row for row in rows if row.startswith("hardwon_pending_requests")).split()[1])

        def computed():
            rows = client.get("/metrics").text.splitlines()
            return float(next(row for row in rows if row.startswith('hardwon_batch_rows_sum{work="encode"}')).split()[1])

        before = computed()
        host, port = server.url.removeprefix("http://").split(":")
        gone = []
        for n in range(30):
            text = "sleep 1" if n == 0 else f"gone {n}"
            path, asked = "/v1/embeddings", {"model": NAME, "input": text}
            if n % 3 == 2:
                path, asked = "/v1/search", {"text": text}
            body = json.dumps(asked).encode()
            connection = socket.create_connection((host, int(port)))
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            connection.sendall(head.encode() + b"\r\n\r\n" + body)
            gone.append(connection)
            if n == 0:
                time.sleep(0.2)  # it is being computed when the others come
        end = time.monotonic() + 10
        while pending() < 30:
            assert time.monotonic() < end
            time.sleep(0.01)
        for connection in gone:
            connection.close()
        end = time.monotonic() + 10
        while pending():
            assert time.monotonic() < end
            time.sleep(0.01)
        assert server.embed("a").status_code == 200
        assert computed() - before <= 2  # the one under way, and ours


def test_failures_answer_their_own_request(server):
    requests = [("/v1/embeddings", {"model": NAME, "input": f"fail {n}" if n % 8 == 0 else f"a {n}"}) for n in range(64)]
    for n, reply in enumerate(together(server, requests, 16)):
        assert reply.status_code == (500 if n % 8 == 0 else 200)
        if n % 8 == 0:
            assert reply.json()["error"] == {
                "message": "the server failed; its log says why",
                "type": "server_error",
                "param": None,
                "code": "internal_error",
            }
    assert "as asked" in server.log.read_text()
    assert server.embed("a").status_code == 200


def test_what_was_accepted_is_answered_before_the_end(folder, tmp_path):
    with serving.running(folder, tmp_path / "log", place="vlm") as server, ThreadPoolExecutor(24) as pool:
        first = pool.submit(server.embed, "sleep 1")
        time.sleep(0.15)
        accepted = [pool.submit(server.embed, f"a {n}") for n in range(23)]
        end = time.monotonic() + 10
        with server.client() as client:
            while "hardwon_pending_requests 24.0" not in client.get("/metrics").text:
                assert time.monotonic() < end
                time.sleep(0.005)
        server.stop(signal.SIGTERM)
        assert [job.result().status_code for job in (first, *accepted)] == [200] * 24
        server.process.join(10)
        assert server.process.exitcode == -signal.SIGTERM
        with pytest.raises(httpx2.ConnectError):
            server.embed("a")


def test_killed_under_load_and_started_again(folder, tmp_path, model):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    truth, answered, broken = model.encode([Item(f"a {n}") for n in range(2000)]), [], 0

    def client(server, start):
        done = []
        with server.client() as connection:
            for n in range(start, start + 250):
                try:
                    reply = connection.post("/v1/embeddings", json={"model": NAME, "input": f"a {n}"})
                    done.append((n, reply.json()["data"][0]["embedding"]))
                except httpx2.HTTPError:
                    return done, 1
        return done, 0

    with serving.running(folder, tmp_path / "1", "--port", port) as server, ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(client, server, 250 * n) for n in range(8)]
        assert server.embed("a").is_success
        time.sleep(0.2)
        server.stop(signal.SIGKILL)
        for job in jobs:
            done, failed = job.result()
            answered, broken = answered + done, broken + failed
    assert broken and answered  # clients are told by the connection, and what was answered was right
    assert all((np.array(vector) * truth[n]).sum() > 0.99999 for n, vector in answered)
    with serving.running(folder, tmp_path / "2", "--port", port) as server:
        assert server.url.endswith(port) and server.embed("a 0").is_success
        assert server.post("/v1/search", {"text": "red square"}).json()["hits"]


def test_ctrl_c_is_the_way_to_stop(folder, tmp_path):
    with serving.running(folder, tmp_path / "log", place="vlm") as server:
        assert server.embed("a").status_code == 200
        server.stop(signal.SIGINT)
        server.process.join(10)
        assert server.process.exitcode == 0
        assert [line for line in server.log.read_text().splitlines() if "shards" not in line and "Loading" not in line] == [
            f"serving at {server.url}/v1",
            f"to look at {server.url}/",
        ]


THINGS = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
FIELDS = {
    "model": st.just(NAME) | THINGS,
    "input": st.text(max_size=8) | st.lists(st.fixed_dictionaries({}, optional={"text": THINGS, "image": THINGS})) | THINGS,
    "messages": st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "x"]), "content": THINGS})) | THINGS,
    "dimensions": THINGS,
    "encoding_format": st.sampled_from(["float", "base64"]) | THINGS,
    "query": st.text(max_size=8) | THINGS,
    "documents": st.lists(st.text(max_size=8)) | THINGS,
    "top_n": THINGS,
    "text": THINGS,
    "image": st.just("data:image/png;base64,") | THINGS,
    "like": THINGS,
    "k": THINGS,
    "rerank": THINGS,
}
BODIES = st.one_of(
    st.fixed_dictionaries({}, optional=FIELDS).map(lambda value: json.dumps(value).encode()),
    THINGS.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40),
)


def test_requests_that_make_no_sense(server):
    with server.client() as client:

        @given(st.sampled_from(["/v1/embeddings", "/v1/rerank", "/v1/search", "/v1/models", "/x"]), BODIES)
        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        def asked(path, body):
            reply = client.post(path, content=body, headers={"content-type": "application/json"})
            assert reply.status_code in STATUSES, reply.text
            if reply.status_code != 200:
                error = reply.json()["error"]
                assert set(error) == {"message", "type", "param", "code"} and error["message"]
                assert len(error["message"]) < 600

        asked()
        assert client.get("/healthz").status_code == 200
