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

from benchmarks.clients import together
from benchmarks.reliability.pytests import by_tests
from benchmarks.reliability.trial import Outcome, Trial
from benchmarks.serve import NAME, Server, body, jpeg, nonsense, serving, url
from hardwon.items import Item
from hardwon.models import Embedder

sys.path.append(str(Path(__file__).parents[2] / "tests"))
import tiny

LIMITS = "tests/serve/test_limits.py"
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


def waiting(count: int, seed: int) -> Outcome:
    """G4: 64 clients of a server that lets 16 requests wait."""
    bodies = [body([Item(f"a red square {seed} {n}")]) for n in range(count)]
    with served("waiting=16") as (server, _):
        together(server.url, bodies[:200], 16)
        calm = float(np.percentile(together(server.url, bodies[: min(count, 1000)], 16)[1], 99))
        before, counts, accepted, bad = server.memory, Counter[int](), [], 0
        for start in range(0, count, 20 * BATCH):
            replies, seconds = together(server.url, bodies[start : start + 20 * BATCH], 64)
            counts.update(reply.status_code for reply in replies)
            bad += sum(reply.status_code == 429 and "retry-after" not in reply.headers for reply in replies)
            accepted += [s for s, reply in zip(seconds, replies, strict=True) if reply.status_code == 200]
        grown, start = server.memory - before, time.perf_counter()
        again, _ = together(server.url, bodies[:20], 1)
        recovered = time.perf_counter() - start
    pressed = float(np.percentile(accepted, 99))
    bad += sum(n for status, n in counts.items() if status not in (200, 429)) + (recovered > 5) + (pressed > 2 * calm)
    bad += sum(reply.status_code != 200 for reply in again)
    told = f"answers {dict(counts)}; p99 of what was accepted {1000 * pressed:.0f} ms, {1000 * calm:.0f} ms with 16 clients; "
    return Outcome(count, bad, f"{told}memory {grown:+.0f} MB; 20 requests afterwards in {recovered:.1f} s")


def lasting(count: int, seed: int) -> Outcome:
    """G5: right and wrong requests for as long as it takes; memory and open files, after the first fifth."""
    draw, pictures = random.Random(seed), [{"image": url(jpeg(n))} for n in range(4)]
    bad = ({"model": "other", "input": "a"}, {"model": NAME, "input": 3}, {"model": NAME, "input": [{"image": url(b"<html>")}]})
    wrong = (b"{", b"[]", *(json.dumps(each).encode() for each in bad))

    def one() -> bytes:
        kind = draw.random()
        if kind < 0.2:
            return draw.choice(wrong)
        given = draw.choice(pictures) if kind < 0.22 else f"a red {draw.random()}"
        return json.dumps({"model": NAME, "input": [given] * draw.randint(1, 3), "encoding_format": "base64"}).encode()

    counts, points = Counter[int](), []
    with served() as (server, _):
        for done in range(0, count, BATCH):
            replies, _ = together(server.url, [one() for _ in range(min(BATCH, count - done))], 32)
            counts.update(reply.status_code for reply in replies)
            files = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
            points.append((done + len(replies), server.memory, files))
    warm = points[len(points) // 5 :]
    slope = 1e4 * float(np.polyfit([n for n, *_ in warm], [mb for _, mb, _ in warm], 1)[0]) if len(warm) > 2 else 0.0
    failed = sum(n for status, n in counts.items() if status not in (200, 400, 404, 422)) + (slope > 1)
    failed += (
        max(files for *_, files in warm) > min(files for *_, files in warm) + 40
    )  # connections of clients that have just gone
    told = (
        f"{slope:+.2f} MB in 10,000 requests after the first fifth; {warm[0][1]:.0f} MB then, {warm[-1][1]:.0f} MB at the end"
    )
    return Outcome(count, int(failed), f"{told}; open files {warm[0][2]} and {warm[-1][2]}; answers {dict(counts)}")


def held(count: int, seed: int) -> Outcome:
    """G7: a tiny model under 32 clients, one text or picture in a request, against one client."""
    texts = [body([Item(f"a red square {seed} {n}")]) for n in range(count)]
    pictures = [body([Item(images=(jpeg(n % 50),))]) for n in range(max(64, count // 5))]
    with served() as (server, _):
        together(server.url, texts[:200], 32)
        rates, slowest, errors = [], [], 0
        for bodies, clients in ((texts, 32), (texts[: count // 8], 1), (pictures, 32)):
            start = time.perf_counter()
            replies, seconds = together(server.url, bodies, clients)
            rates.append(len(bodies) / (time.perf_counter() - start))
            slowest.append(1000 * np.percentile(seconds, 99))
            errors += sum(reply.status_code != 200 for reply in replies)
    told = f"{rates[0]:.0f} texts and {rates[2]:.0f} pictures a second, p99 {slowest[0]:.0f} and {slowest[2]:.0f} ms; "
    short = errors + (rates[0] < 300) + (rates[2] < 60) + (max(slowest[0], slowest[2]) > 300)
    return Outcome(count, int(short), f"{told}one client alone {rates[1]:.0f} texts a second; {errors} errors")


def stopped(count: int, seed: int) -> Outcome:
    """G8: SIGTERM while 24 clients wait, again and again; what was accepted is answered, and the process ends."""
    failed, slowest = 0, 0.0
    for n in range(count):
        with served() as (server, _):
            asked = [body([Item(f"a {seed} {n} {m}")] * 200) for m in range(24)]
            host, port = server.url.removeprefix("http://").split(":")
            clients = [socket.create_connection((host, int(port)), timeout=60) for _ in asked]
            for client, made in zip(clients, asked, strict=True):
                head = "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
                client.sendall(f"{head}{len(made)}\r\n\r\n".encode() + made)
            import httpx2

            end = time.monotonic() + 20
            while time.monotonic() < end:  # until all of them have been read
                rows = httpx2.get(f"{server.url}/metrics", trust_env=False).text.splitlines()
                done = sum(float(r.split()[-1]) for r in rows if r.startswith('hardwon_requests_total{path="/v1/embeddings"'))
                if done + float(next(r for r in rows if r.startswith("hardwon_pending_requests")).split()[1]) >= len(asked):
                    break
            start = time.perf_counter()
            server.process.terminate()
            for client in clients:
                failed += not client.recv(20).startswith(b"HTTP/1.1 200")
                client.close()
            server.process.wait(20)
            slowest = max(slowest, time.perf_counter() - start)
    return Outcome(
        count, failed + (slowest > 10), f"24 requests each time, {failed} not answered; the end took {slowest:.1f} s at most"
    )


TRIALS = (
    Trial("G3", "bodies up to 60 MB, 10,000 inputs, deep or compressed JSON, slow connections", "4xx, < 100 MB", 500, bombs),
    Trial("G4", "64 clients of a server that lets 16 wait", "200 or 429 only, p99 at most doubled", 20_000, waiting),
    Trial("G5", "right and wrong requests, one after the other", "below 1 MB in 10,000", 200_000, lasting),
    Trial("G6", "requests that make no sense", "0 answers of 500 and above, all errors in OpenAI's form", 10_000, malformed),
    by_tests(
        "G6 schema",
        "requests made from the OpenAPI schema, right and wrong",
        "no 5xx, every answer as documented",
        "tests/serve/test_schema.py",
        each=150,
        full=5_000,
    ),
    Trial("G7", "32 clients of a tiny model", "300 texts, 60 pictures a second; p99 300 ms", 4_000, held),
    Trial("G8", "clients that go while they wait", "0 requests left, others answered", 1_000, cancelled),
    Trial("G8 stop", "SIGTERM while 24 clients wait", "all answered, the end within 10 s", 5, stopped),
    by_tests(
        "G10",
        "addresses, keys, names, origins",
        "nothing without a key but this machine",
        f"{LIMITS} keys or who_may or name",
        each=40,
        full=40,
    ),
    by_tests(
        "G11", "planted secrets in every part of requests", "none written down", "tests/serve/test_secrets.py", each=20, full=20
    ),
    by_tests(
        "G12",
        "texts and names that try to run in the page",
        "0 run, 0 fetched",
        "tests/serve/test_page.py data_is_run",
        each=100,
        full=100,
    ),
    Trial("G14", "32 clients against one call", "0 answers swapped, cosine >= 0.99999", 10_000, concurrent),
)
