"""The head of a request: one that does not end is refused before it is much, a long one that does is read."""

import select
import socket
from itertools import repeat

import pytest

from hardwon.serve.wire import HEAD, TOO_LONG

FIRST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
ENDLESS = {
    "headers": (b"X-%d: " % n + b"a" * 50_000 + b"\r\n" for n in range(1000)),
    "header": (b"X: " if n == 0 else b"a" * 50_000 for n in range(1000)),
    "name": repeat(b"a" * 50_000, 1000),
}


def connected(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def said(server, *parts):
    """What is answered, and how many bytes the server let through."""
    sent, answer = 0, b""
    with connected(server) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                sent += len(part)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            answer = connection.recv(65536)
        except ConnectionResetError:  # the answer was overtaken by the end of the connection
            pass
    return answer, sent


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_head_that_does_not_end_is_refused(server, kind):
    before = server.memory
    answer, sent = said(server, FIRST, *ENDLESS[kind])
    assert not answer or answer.startswith(b"HTTP/1.1 400")
    assert sent < 30_000_000  # of 50 MB; what the kernel holds on both sides is all that goes through
    assert server.memory - before < 20_000_000
    with server.client() as client:
        assert client.get("/healthz").status_code == 200


def test_it_says_why(server):
    """In small parts, and none after the answer has come."""
    with connected(server) as connection:
        connection.sendall(FIRST)
        for n in range(2 * HEAD // 1000):
            if select.select([connection], [], [], 0.01)[0]:
                break
            connection.sendall(b"X-%d: " % n + b"a" * 990 + b"\r\n")
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400") and answer.endswith(TOO_LONG.encode())


def test_long_heads_that_end_are_read(server):
    headers = b"".join(b"X-%d: " % n + b"a" * 1000 + b"\r\n" for n in range(40))
    with connected(server) as connection:
        for _ in range(3):  # the limit is of one request, not of a connection
            for part in (FIRST, headers, b"\r\n"):
                connection.sendall(part)
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                more = connection.recv(65536)
                assert more, answer
                answer += more
            assert answer.startswith(b"HTTP/1.1 200")
