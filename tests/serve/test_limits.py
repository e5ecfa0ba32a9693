"""What is refused, before anything is computed. Raw connections, since clients would not send most of it."""

import asyncio
import json
import socket
import time
import zlib

import pytest
import serving
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import NAME

from hardwon.errors import MissingExtra, RecipeError
from hardwon.serve.app import check_host
from hardwon.serve.limits import BUSY_S, DEPTH, STRUCTURES, WIDTH, Guard, Limits, Refused, is_loopback, parsed
from hardwon.stages import serving as loading

KEY = "hw-planted-key-5b1c"
JSON = "Content-Type: application/json"


@pytest.fixture(scope="module")
def guarded(folder, tmp_path_factory):
    """A server with a key and small limits, without index and reranker."""
    limits = ("body_bytes=20000", "held_bytes=30000", "inputs=8", "read_s=0.4")
    told = [part for limit in limits for part in ("--limit", limit)]
    log = tmp_path_factory.mktemp("guarded") / "log"
    with serving.running(folder, log, *told, "--api-key-env", "HW_KEY", place="vlm", HW_KEY=KEY) as made:
        yield made


def connected(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def answer(connection):
    """Status and body of what comes until the connection closes or the body ends."""
    said = b""
    while True:
        head, end, body = said.partition(b"\r\n\r\n")
        if end:
            length = next(int(row.split(b":")[1]) for row in head.split(b"\r\n") if row.lower().startswith(b"content-length"))
            if len(body) >= length:
                return int(head.split()[1]), json.loads(body)["error"]
        part = connection.recv(65536)
        assert part, said
        said += part


def raw(server, *headers, body=b"", path="/v1/embeddings"):
    """A request as bytes, and its answer."""
    with connected(server) as connection:
        rows = (f"POST {path} HTTP/1.1", "Host: localhost", *headers, "", "")
        connection.sendall("\r\n".join(rows).encode("latin-1") + body)
        return answer(connection)


def bearer(key=KEY):
    return f"Authorization: Bearer {key}"


def test_bodies_beyond_the_limit(guarded):
    status, error = raw(guarded, bearer(), JSON, "Content-Length: 20001", body=b" " * 20001)
    assert (status, error["code"]) == (413, "too_large")
    assert raw(guarded, bearer(), JSON, f"Content-Length: {'9' * 15}")[0] == 413
    chunks = b"".join(b"1000\r\n" + b" " * 0x1000 + b"\r\n" for _ in range(6)) + b"0\r\n\r\n"
    assert raw(guarded, bearer(), JSON, "Transfer-Encoding: chunked", body=chunks)[0] == 413
    packed = zlib.compress(b" " * 10_000_000)
    headers = (f"Content-Length: {len(packed)}", "Content-Encoding: deflate")
    assert raw(guarded, bearer(), JSON, *headers, body=packed)[0] == 415
    assert raw(guarded, bearer(), "Content-Type: text/plain", "Content-Length: 2", body=b"{}")[0] == 415


def test_a_hundred_megabytes_are_not_kept(server):
    before = server.memory
    with connected(server) as connection:
        connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n")
        connection.sendall(JSON.encode() + b"\r\n\r\n")
        for _ in range(100):
            connection.sendall(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert answer(connection)[0] == 413
    assert server.memory - before < 40_000_000


def test_slow_bodies(guarded):
    start = time.monotonic()
    status, error = raw(guarded, bearer(), JSON, "Content-Length: 100", body=b"{")
    assert (status, error["type"]) == (408, "timeout_error") and time.monotonic() - start < 5
    held = []
    for _ in range(4):  # together more than all may hold
        connection = connected(guarded)
        rows = ("POST /v1/embeddings HTTP/1.1", "Host: localhost", bearer(), JSON, "Content-Length: 10001", "", "")
        connection.sendall("\r\n".join(rows).encode() + b" " * 10000)
        held.append(connection)
    assert sorted(answer(connection)[0] for connection in held) == [408, 408, 408, 429]
    for connection in held:
        connection.close()
    assert guarded.post("/v1/embeddings", {"model": NAME, "input": "a"}, headers={"authorization": f"Bearer {KEY}"}).is_success


def test_keys(guarded):
    client = guarded.client()

    def status(path, **headers):
        return client.get(path, headers=headers).status_code

    assert status("/healthz") == 200
    for path in ("/v1/models", "/metrics", "/openapi.json", "/no/such"):
        for wrong in ({}, {"authorization": f"Bearer {KEY}x"}, {"authorization": f"Basic {KEY}"}, {"authorization": "Bearer"}):
            assert status(path, **wrong) == 401, (path, wrong)
        assert status(path, authorization=f"Bearer {KEY}") in (200, 404)
    assert raw(guarded, JSON, bearer("other"), "Content-Length: 2", body=b"{}")[1]["code"] == "invalid_api_key"
    assert raw(guarded, JSON, f"Authorization: Bearer {KEY}\xff", "Content-Length: 2", body=b"{}")[0] == 401
    client.close()
    said = guarded.log.read_text()
    assert KEY not in said and "other" not in said


def test_what_this_server_does_not_have(guarded):
    headers = {"authorization": f"Bearer {KEY}"}
    for path, asked in (("/v1/search", {"text": "a"}), ("/v1/rerank", {"query": "a", "documents": ["b"]})):
        reply = guarded.post(path, asked, headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    reply = guarded.post("/v1/embeddings", {"model": NAME, "input": ["a"] * 9}, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "too_many")
    with guarded.client() as client:
        wrong = client.put("/v1/embeddings", headers=headers)
        assert wrong.status_code == 405 and wrong.json()["error"]["message"]


def test_pages_under_another_name(server):
    for host, status in (("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example:80", 403), ("", 403)):
        with server.client() as client:
            assert client.get("/v1/models", headers={"host": host}).status_code == status, host
    with server.client() as client:
        reply = client.options("/v1/embeddings", headers={"origin": "http://evil.example"})
        assert not any(name.startswith("access-control") for name in reply.headers)


def addresses(port):
    """Ways to name this machine, its neighbours and others."""
    hosts = ("127.0.0.1", "localhost", "[::1]", "0x7f000001", "2130706433", "0177.0.0.1", "127.1", "[::ffff:127.0.0.1]")
    hosts += ("0.0.0.0", "a@127.0.0.1", "127.0.0.1.", "localhost.", "[::]", "[2002:7f00:1::]", "127.0.0.1%00", "①②⑦.0.0.1")
    made = [f"{kind}://{host}:{port}/a.png" for kind in ("http", "https", "ftp", "HTTP") for host in hosts]
    far = ("169.254.169.254/latest", "10.0.0.1", "100.64.0.1", "192.168.0.1", "metadata.internal", "example.org/a.png")
    made += [f"http://{host}" for host in far]
    return [
        *made,
        "gopher://x",
        "//x/y",
        "http:127.0.0.1",
        "https:/\\127.0.0.1",
        "dict://127.0.0.1:1",
        "javascript:0",
        "blob:x",
    ]


def paths(secret):
    """Ways to name a file."""
    name = str(secret)
    made = [name, f"file://{name}", f"FILE://localhost{name}", f"file:{name}", f"\x00{name}", f"{name}\x00.png", f"~{name}"]
    made += ["/proc/self/environ", "/proc/self/fd/3", "/dev/stdin", "C:\\x", "\\\\host\\share\\x.png", "data", "-", "."]
    made += [f"{up * n}{name.lstrip('/')}" for n in range(1, 10) for up in ("../", "..%2f", "%2e%2e/", "..\\", "....//")]
    return made


def message(url):
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}


def test_no_address_is_fetched_and_no_file_opened(server, tmp_path):
    secret = tmp_path / "secret.png"
    serving.tiny.draw("red", "square").save(secret)
    with socket.create_server(("127.0.0.1", 0)) as listener, server.client() as client:
        port = listener.getsockname()[1]
        listener.settimeout(0.2)
        for url in [*addresses(port), *paths(secret)]:
            asked = (
                ("/v1/embeddings", {"model": NAME, "input": [{"image": url}]}, "input[0]"),
                ("/v1/embeddings", {"model": NAME, "messages": [message(url)]}, "messages[0]"),
                ("/v1/rerank", {"query": "a", "documents": [{"image": url}]}, "documents[0]"),
                ("/v1/search", {"image": url}, "image"),
            )
            for path, body, field in asked:
                reply = client.post(path, json=body)
                error = reply.json()["error"]
                assert (reply.status_code, error["code"], error["param"]) == (400, "picture_not_inline", field), url
                assert "data:image/png;base64" in error["message"]
        for url in (f"data:{secret}", "data:image/png,abc", "data:;base64,%%%", "data:image/png;base64,", "data:,"):
            reply = client.post("/v1/embeddings", json={"model": NAME, "input": [{"image": url}]})
            assert (reply.status_code, reply.json()["error"]["code"]) == (400, "picture_not_base64"), url
        with pytest.raises(TimeoutError):
            listener.accept()
    reply = server.embed(str(secret), f"http://127.0.0.1:{port}/")  # text is text
    assert reply.status_code == 200


def refusal(body):
    with pytest.raises(Refused) as caught:
        parsed(body)
    assert caught.value.status == 400
    return caught.value.code


def test_deep_wide_and_many():
    assert parsed(b"[" * DEPTH + b"]" * DEPTH)
    assert refusal(b"[" * (DEPTH + 1) + b"]" * (DEPTH + 1)) == "too_complex"
    assert refusal(b"[" * 100_000) in ("invalid_json", "too_complex")
    assert refusal(b'{"a":' * 1000 + b"1" + b"}" * 1000) in ("invalid_json", "too_complex")
    assert refusal(json.dumps([{str(n): n for n in range(WIDTH + 1)}]).encode()) == "too_complex"
    assert refusal(b"[" + b"{}," * STRUCTURES + b"{}]") == "too_complex"
    code = "[{" * STRUCTURES + '"\\'
    assert parsed(json.dumps([code]).encode()) == [code]
    for wrong in (b"", b"NaN", b'{"a": Infinity}', b'"\\ud800"', b"\xff", b"{'a': 1}", b"1" * 10_000):
        assert refusal(wrong) == "invalid_json", wrong


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
@settings(max_examples=100, deadline=None)
def test_everything_else_is_read(value):
    try:
        assert parsed(json.dumps(value).encode()) == value
    except Refused as error:
        assert error.code == "too_complex"


def test_settings():
    assert Limits().changed({"waiting": "3", "wait_s": "0.5"}) == Limits(waiting=3, wait_s=0.5)
    for wrong, says in (
        ({"waitin": "3"}, "did you mean 'waiting'"),
        ({"waiting": "x"}, "must be a number, such as 512"),
        ({"waiting": "0"}, "must be above 0"),
        ({"wait_s": "nan"}, "must be above 0"),
    ):
        with pytest.raises(RecipeError, match=says):
            Limits().changed(wrong)


def test_who_may_be_served(monkeypatch):
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    for host in ("0.0.0.0", "::", "", "192.168.0.1", "example.org", "localhost.example.org"):
        assert not is_loopback(host)
        with pytest.raises(RecipeError, match="--api-key-env"):
            check_host(host, "")
        check_host(host, "key")
    told = {"rerank": None, "port": 0, "name": "", "device": "cpu", "limits": (), "ready": print}
    with pytest.raises(RecipeError, match="--api-key-env"):  # before anything is loaded
        loading.serve("/no/such", host="0.0.0.0", key_name="", **told)
    monkeypatch.delenv("HW_NONE", raising=False)
    with pytest.raises(RecipeError, match="HW_NONE is not set"):
        loading.serve("/no/such", host="127.0.0.1", key_name="HW_NONE", **told)


def test_missing_packages(monkeypatch):
    monkeypatch.setattr(loading, "PACKAGES", ("json", "no_such_package"))
    with pytest.raises(ImportError, match=r"no_such_package.*hardwon\[serve\]") as caught:
        loading.check_packages()
    assert isinstance(caught.value, MissingExtra)


def test_a_port_that_is_taken(server, folder):
    told = {"rerank": None, "name": "", "device": "cpu", "limits": (), "ready": print}
    port = int(server.url.rsplit(":", 1)[1])
    with pytest.raises(RecipeError, match="choose another with --port"):
        loading.serve(str(folder / "vlm"), host="127.0.0.1", port=port, key_name="", **told)


@pytest.mark.parametrize(("waiting", "status"), [(1, 429), (2, 400)])
def test_who_is_sent_away_hears_it_after_a_moment(waiting, status, monkeypatch):
    """Else clients that ask again at once take the time in which others are answered."""
    said, waited = [], []

    async def sleep(seconds):
        waited.append((seconds, len(said)))

    async def receive():
        return {"type": "http.request", "body": b"no JSON", "more_body": False}

    async def send(message):
        said.append(message)

    def nothing(*_):
        return 0.0

    guard = Guard(nothing, nothing, frozenset(("/v1/embeddings",)), Limits(waiting=waiting), "", nothing, nothing)
    guard.pending = 1  # another request waits for its answer
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"7")]
    monkeypatch.setattr(asyncio, "sleep", sleep)
    asyncio.run(guard({"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": headers}, receive, send))
    assert said[0]["status"] == status
    assert waited == ([(BUSY_S, 0)] if status == 429 else [])  # before anything is said
    assert guard.pending == 1
