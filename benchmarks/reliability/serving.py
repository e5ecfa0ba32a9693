"""Group G: serving. The server is a process of its own on loopback, with a tiny model that is made for the trial."""

import asyncio
import base64
import contextlib
import json
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.reliability.trial import Outcome, Trial
from benchmarks.serve import NAME, Server, body, jpeg, nonsense, serving, together
from hardwon.items import Item
from hardwon.models import Embedder

sys.path.append(str(Path(__file__).parents[2] / "tests"))
import tiny

BATCH = 500  # requests that are held in memory here at a time


@contextlib.contextmanager
def served(*limits: str) -> Iterator[tuple[Server, Embedder]]:
    """A server, and its model here."""
    with tempfile.TemporaryDirectory() as folder:
        place = tiny.build_vlm(Path(folder) / "vlm")
        with serving(str(place), *limits) as server:
            yield server, Embedder.load(place, device="cpu")


def slow(server: Server, count: int) -> list[socket.socket]:
    """Connections that send the beginning of a request, and then nothing."""
    host, port = server.url.removeprefix("http://").split(":")
    made = []
    for n in range(count):
        made.append(socket.create_connection((host, int(port))))
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        made[-1].sendall(head if n % 2 else head + b"Content-Length: 1000\r\n\r\n{")
    return made


def bombs(count: int, seed: int) -> Outcome:
    """G3: bodies beyond the limit, far too many inputs, deep nesting, compressed bodies, slow connections."""
    draw, failed, counts = random.Random(seed), 0, Counter[int]()
    kinds = (
        lambda: (b" " * draw.randint(8_000_001, 60_000_000), {}),
        lambda: (json.dumps({"model": NAME, "input": ["a"] * 10_000}).encode(), {}),
        lambda: (b'{"input":' + b"[" * 1000 + b"]" * 1000 + b"}", {}),
        lambda: (b"[" + b"[]," * 2_000_000 + b"[]]", {}),
        lambda: (bytes(draw.randbytes(5000)), {"content-encoding": "gzip"}),
    )
    with served() as (server, _):
        honest = [json.dumps({"model": NAME, "input": f"a {n}"}).encode() for n in range(100)]
        calm = np.percentile(together(server.url, honest, 4)[1], 99)
        before, peak = server.memory, 0.0
        held = slow(server, min(200, count))
        pressed = np.percentile(together(server.url, honest, 4)[1], 99)
        import httpx2

        with httpx2.Client(base_url=server.url, timeout=60, trust_env=False, verify=False) as client:
            for n in range(count):
                made, headers = kinds[n % len(kinds)]()
                status = client.post("/v1/embeddings", content=made, headers={"content-type": "application/json", **headers})
                counts[status.status_code] += 1
                failed += status.status_code not in (400, 413, 415, 422)
                peak = max(peak, server.memory)
        for connection in held:
            connection.close()
    failed += peak - before > 100
    found = f"answers {dict(counts)}; memory +{peak - before:.0f} MB; p99 of others {1000 * calm:.0f} ms alone, "
    return Outcome(count, failed, found + f"{1000 * pressed:.0f} ms beside slow connections")


def malformed(count: int, seed: int) -> Outcome:
    """G6: see `benchmarks.serve.nonsense`."""
    with served() as (server, _):
        told = nonsense(server, count, seed)
    return Outcome(count, int(told[0].split(": ")[1].split()[0]), " ".join(told))


def cancelled(count: int, seed: int) -> Outcome:
    """G8: clients that go while they wait; afterwards nothing is pending, and others are answered."""
    draw = random.Random(seed)

    async def leave(server: Server) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        made = body([Item(f"a {draw.random()}")] * 8)
        head = (
            f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(made)}"
        )
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + b"\r\n\r\n" + made[: draw.choice((len(made), len(made), len(made) // 2))])
        await writer.drain()
        await asyncio.sleep(draw.random() * 0.02)
        writer.transport.abort()

    async def all_leave(server: Server) -> None:
        for _ in range(0, count, 50):
            await asyncio.gather(*(leave(server) for _ in range(50)))

    import httpx2

    with served() as (server, _):
        asyncio.run(all_leave(server))
        left, end = "?", time.monotonic() + 15
        while left != "0.0" and time.monotonic() < end:
            rows = httpx2.get(f"{server.url}/metrics", trust_env=False).text.splitlines()
            left = next(row for row in rows if row.startswith("hardwon_pending_requests")).split()[1]
            time.sleep(0.05)
        answered = together(server.url, [body([Item("a")])] * 20, 4)[0]
    failed = int(float(left)) + sum(reply.status_code != 200 for reply in answered)
    return Outcome(count, failed, f"{left} pending afterwards")


def concurrent(count: int, seed: int) -> Outcome:
    """G14: vectors of 32 clients against those of one call."""
    draw, failed, worst = random.Random(seed), 0, 1.0
    drawn = [jpeg(n) for n in range(20)]
    with served() as (server, model):
        for start in range(0, count, BATCH):
            asked = [
                [
                    Item(
                        " ".join(draw.choices(("red", "blue", "square", "a", "it"), k=draw.randint(1, 12)))
                        + f" {start + n} {m}"
                    )
                    for m in range(draw.randint(1, 4))
                ]
                + ([Item(images=(draw.choice(drawn),))] if draw.random() < 0.2 else [])
                for n in range(min(BATCH, count - start))
            ]
            replies, _ = together(server.url, [body(each) for each in asked], 32)
            truth, place = model.encode([item for each in asked for item in each]), 0
            for each, reply in zip(asked, replies, strict=True):
                rows = reply.json().get("data", [])
                own, place = truth[place : place + len(each)], place + len(each)
                made = [np.frombuffer(base64.b64decode(row["embedding"]), dtype="<f4") for row in rows]
                cosine = float((np.stack(made) * own).sum(axis=1).min()) if len(made) == len(each) else -1.0
                worst, failed = min(worst, cosine), failed + (cosine < 0.99999)
    return Outcome(count, failed, f"smallest cosine with the vector of one call {worst:.7f}")


TRIALS = (
    Trial("G3", "bodies up to 60 MB, 10,000 inputs, deep or compressed JSON, slow connections", "4xx, < 100 MB", 500, bombs),
    Trial("G6", "requests that make no sense", "0 answers of 500 and above, all errors in OpenAI's form", 10_000, malformed),
    Trial("G8", "clients that go while they wait", "0 requests left, others answered", 1_000, cancelled),
    Trial("G14", "32 clients against one call", "0 answers swapped, cosine >= 0.99999", 10_000, concurrent),
)
