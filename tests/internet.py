"""A little internet on loopback: names that lead to addresses, a TLS server behind the public ones, a trap behind the others.

Whatever address is connected to, the connection ends at this machine: at the server for those of `PUBLIC`, else at the trap,
which counts. So a guard that lets a private address through is found out by a real connection.
"""

import contextlib
import http.server
import itertools
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass, field

import httpcore2

from hardwon.fetch import Network

PUBLIC = ("93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946")
HOST = "images.example.org"
PRIVATE = (
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254"),
    *("100.64.0.1", "100.127.255.254", "192.0.0.10", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1"),
    *(
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
    ),
    *("2002:7f00:1::", "2002:a9fe:a9fe::", "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2001:0:7f00:1::1", "fe80::1", "fc00::1"),
    *("fd00:ec2::254", "ff02::1", "ff0e::1", "2001:db8::1", "100::1", "fec0::1", "::127.0.0.1", "not an address"),
)
# Addresses that are refused as they are written, before any name is looked up.
WRITTEN = (
    *("https://127.0.0.1/a.png", "https://[::1]/a.png", "https://[::ffff:127.0.0.1]/a.png", "https://[2002:7f00:1::]/a.png"),
    *("https://0177.0.0.1/a.png", "https://0x7f.0.0.1/a.png", "https://2130706433/a.png", "https://0x7f000001/a.png"),
    *("https://127.1/a.png", "https://169.254.169.254/latest/meta-data/", "https://10.0.0.1/a.png", "https://localhost/a.png"),
    *(f"https://{HOST}@127.0.0.1/a.png", f"https://127.0.0.1@{HOST}/a.png", f"https://user:pass@{HOST}/a.png"),
    *(f"https://{HOST}./a.png", f"https://{HOST}:22/a.png", f"https://{HOST}:443/a.png", f"https://{HOST}:8443/a.png"),
    *(
        f"http://{HOST}/a.png",
        f"ftp://{HOST}/a.png",
        f"gopher://{HOST}/a.png",
        "file:///etc/passwd",
        "data:image/png;base64,AA",
    ),
    *(f"https:/{HOST}/a.png", f"https:///{HOST}/a.png", f"https://{HOST}\\@127.0.0.1/a.png", f"https://{HOST}\t/a.png"),
    *(f"https://{HOST}\r\nHost: localhost/a.png", f"https://{HOST} /a.png", f"https://{HOST}%2f@127.0.0.1/", "https://"),
    *(f"https://{HOST}#@127.0.0.1:1/../\u0000", f"https://evil.{HOST}/a.png", f"https://{HOST}.evil.org/a.png"),
    *("https://images\u3002example\u3002org/a.png", "https://ⓘmages.example.org/a.png", "https://example.org/a.png"),
)
# Where a redirect may try to lead.
LEADING = (
    *(
        "https://127.0.0.1/",
        "http://127.0.0.1/",
        "https://private.example.org/",
        "//private.example.org/a",
        "file:///etc/passwd",
    ),
    *("https://images.example.org:8443/", "https://user@images.example.org/", "https://evil.org/", "gopher://127.0.0.1:70/"),
    *("https://[::1]/", "https://169.254.169.254/latest/", "/loop", "https://images.example.org\\@127.0.0.1/", ""),
)


@dataclass
class Internet:
    """What the names lead to, what the server sends, and who came where.

    Attributes:
        network: to hand to `fetch`.
        names: addresses of each name; a list of lists is worked off look-up by look-up (rebinding).
        pages: by path: (status, headers, body) or a function of the handler.
        connected: addresses that were connected to.
        trapped: connections that came to the trap.
        asked: paths and hosts that the server was asked for.
    """

    network: Network
    names: dict[str, list] = field(default_factory=dict)
    pages: dict = field(default_factory=dict)
    connected: list[str] = field(default_factory=list)
    trapped: list[str] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    looked_up: list[str] = field(default_factory=list)


class _Dial(httpcore2.NetworkBackend):
    def __init__(self, web: Internet, server: int, trap: int):
        self.web, self.server, self.trap, self.inner = web, server, trap, httpcore2.SyncBackend()

    def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        self.web.connected.append(host)
        return self.inner.connect_tcp("127.0.0.1", self.server if host in PUBLIC and port == 443 else self.trap, timeout)


def certificate(folder):
    """A key and a certificate for the names below example.org."""
    made = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=example.org"]
    command += ["-addext", "subjectAltName=DNS:*.example.org,DNS:example.org", "-keyout", made[0], "-out", made[1]]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return made


@contextlib.contextmanager
def internet(folder):
    """The internet for a while; `folder` is for its certificate."""
    key, cert = certificate(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            web.asked.append((self.path, self.headers["Host"]))
            page = web.pages.get(self.path, (404, {}, b""))
            if callable(page):
                with contextlib.suppress(OSError):
                    page(self)
                self.close_connection = True
                return
            status, headers, body = page
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    trap = socket.create_server(("127.0.0.1", 0))

    def look_up(name):
        web.looked_up.append(name)
        found = web.names.get(name, [])
        return (found.pop(0) if len(found) > 1 else found[0]) if found and isinstance(found[0], list) else found

    web = Internet(Network())
    dial = _Dial(web, server.server_address[1], trap.getsockname()[1])
    trust = ssl.create_default_context(cafile=str(cert))
    web.network = Network(look_up, dial, lambda: trust)
    web.names[HOST] = list(PUBLIC)

    def catch():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = trap.accept()
                web.trapped.append("came")
                connection.close()

    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    threading.Thread(target=catch, daemon=True).start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        trap.shutdown(socket.SHUT_RDWR)
        trap.close()


def dripping(handler):
    """A page that sends a letter of its head ten times a second, without end."""
    for _ in range(600):
        handler.wfile.write(b"H")
        handler.wfile.flush()
        time.sleep(0.1)


def trickling(handler):
    """A page whose body does not end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    dripping(handler)


def endless(handler):
    """A body without a stated length and without an end."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 100_000)


def attempts(web, statuses=(302,)):
    """Addresses to fetch, each as (what it is, url), with names and pages prepared so that it would lead inside."""
    made = [("written", url) for url in WRITTEN]
    for n, address in enumerate(PRIVATE):
        web.names[f"p{n}.example.org"] = [address]
        web.names[f"m{n}.example.org"] = [PUBLIC[0], address]  # one good address among them
        web.names[f"r{n}.example.org"] = [[PUBLIC[0]], [address]]  # another one at the second look-up
        web.pages[f"/again{n}"] = (302, {"Location": f"https://r{n}.example.org/inside"}, b"")
        made += [("leads to", f"https://p{n}.example.org/"), ("also leads to", f"https://m{n}.example.org/")]
        made += [("rebinding", f"https://r{n}.example.org/again{n}")]
    web.names["private.example.org"] = ["10.1.2.3"]
    web.pages["/loop"] = (302, {"Location": "/loop"}, b"")
    for (n, place), status in itertools.product(enumerate(LEADING), statuses):
        web.pages[f"/to{n}-{status}"] = (status, {"Location": place}, b"")
        made.append(("redirect", f"https://{HOST}/to{n}-{status}"))
    return made
