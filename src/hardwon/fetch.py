"""Pictures from the internet, for whoever allows it: the only place where an address is fetched.

Nothing is fetched unless a caller hands over `AllowedHosts`. The address must be https on its own port, with one of the hosts
that are named there. The host's name is looked up once; if any of its addresses lies in a private or special range, nothing is
connected to, and otherwise the connection goes to one of just those addresses (a second look-up could give others). A redirect
is looked at in the same way. Size and time are limits of the whole, not of one read; compressed answers are not taken. Proxies
of the environment are not used: what they connect to cannot be checked here. Whatever goes wrong, the answer is an error.
"""

import functools
import ipaddress
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpcore2

from hardwon.artifacts import checksum, checksum_of, write_atomically, write_json
from hardwon.errors import BadMedia, RecipeError
from hardwon.pictures import check_picture
from hardwon.progress import bar

FOLDER = "fetched"  # below the data root
_AT_ONCE = 16
_REDIRECTS = (301, 302, 303, 307, 308)
_LONGEST = 4096
_NAME = re.compile(r"(?=.{1,253}$)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
# Nothing but a name may stand before the path: no user, no port, no brackets; and no character that parsers disagree about.
_URL = re.compile(r"https://([A-Za-z0-9.-]+)((?:[/?][!$-;=?-Z_a-z~]*)?)(?:#[!-~]*)?", re.ASCII)


@dataclass(frozen=True)
class AllowedHosts:
    """What may be fetched.

    Attributes:
        hosts: names, such as "images.example.org"; "*.example.org" stands for all names below it. Addresses are not taken.
        max_bytes: of one picture.
        timeout_s: seconds for one picture in all: looking up, connecting, every redirect, reading.
        max_hops: redirects that are followed.

    Raises:
        RecipeError: no hosts, something that is not a host's name, or a limit that is not above 0.
    """

    hosts: tuple[str, ...]
    max_bytes: int = 20_000_000
    timeout_s: float = 5.0
    max_hops: int = 3

    def __post_init__(self) -> None:
        if isinstance(self.hosts, str) or not self.hosts:
            raise RecipeError(f"hosts must be a tuple of names, got {self.hosts!r}: AllowedHosts(('images.example.org',))")
        for host in self.hosts:
            if not _NAME.fullmatch(host.removeprefix("*.")):
                raise RecipeError(
                    f"{host!r} is not a host's name: give it in lower case without scheme, port and path, as images.example.org"
                )
        for name, value, least in (("max_bytes", self.max_bytes, 1), ("max_hops", self.max_hops, 0)):
            if value < least:
                raise RecipeError(f"{name} must be at least {least}, got {value}")
        if not self.timeout_s > 0:
            raise RecipeError(f"timeout_s must be above 0, got {self.timeout_s}")

    def allow(self, host: str) -> bool:
        """Whether a host is one of those."""
        return any(host.endswith(h[1:]) if h.startswith("*.") else host == h for h in self.hosts)


def _look_up(host: str) -> list[str]:
    return sorted({str(found[4][0]) for found in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)})


@functools.cache  # reading the certificates takes 30 ms
def _trusted() -> ssl.SSLContext:
    return ssl.create_default_context()


@dataclass(frozen=True)
class Network:
    """How names are looked up and addresses are connected to; the tests have one of their own.

    Attributes:
        look_up: the addresses of a name.
        backend: connects to an address.
        trust: which certificates are believed.
    """

    look_up: Callable[[str], Sequence[str]] = _look_up
    backend: httpcore2.NetworkBackend = field(default_factory=httpcore2.SyncBackend)
    trust: Callable[[], ssl.SSLContext] = _trusted


def fetch(url: str, allowed: AllowedHosts, network: Network | None = None) -> bytes:
    """What lies at an address, as it was sent; whether it is a picture is for `pictures` to say.

    Args:
        url: https, without user and port.
        allowed: which hosts, and the limits.
        network: the internet if None.

    Raises:
        BadMedia: an address that is not allowed or leads to a private network, a limit that is passed, or a host that does not
            answer with a file.
    """
    network, shown = network or Network(), url[:200]
    end = time.monotonic() + allowed.timeout_s
    for _ in range(allowed.max_hops + 1):
        host, target = _parsed(url, allowed)
        addresses = _public(host, _within(end, network.look_up, host, shown), shown)
        answer = _answer(_Pinned(network.backend, addresses, end), network.trust(), host, target, allowed)
        if isinstance(answer, bytes):
            return answer
        try:
            url = urljoin(f"https://{host}{target}", answer)
        except ValueError as error:
            raise BadMedia(f"{shown!r} is redirected to what is no address: {error}") from error
    raise BadMedia(f"{shown!r} is redirected more than {allowed.max_hops} times: give the address where it ends")


def is_url(text: str) -> bool:
    """Whether a picture is named by an address that `fetch` may be able to fetch."""
    return text[:8].lower().startswith("https://")


class Fetched:
    """Pictures of a data set that are named by their addresses, kept in `ROOT/fetched`, each under the hash of its content.

    What was fetched stays: it is read again without the network, whatever the address leads to by then. A file that has changed
    since is fetched anew.

    Args:
        root: the data root.
        allowed: which hosts, and the limits.
        network: as for `fetch`.
    """

    def __init__(self, root: Path, allowed: AllowedHosts, network: Network | None = None):
        self.folder, self.allowed, self.network = root / FOLDER, allowed, network
        self._found: dict[str, str | BadMedia] = {}

    def bring(self, urls: Iterable[str]) -> None:
        """Fetch several at a time. What cannot be had is not raised here, but when it is asked for."""
        wanted = sorted({url for url in urls if url not in self._found})
        with bar("fetching", len(wanted), "pictures", shown=bool(wanted)) as advance, ThreadPoolExecutor(_AT_ONCE) as pool:
            for url, found in zip(wanted, pool.map(self._get, wanted), strict=True):
                self._found[url] = found
                advance()

    def path(self, url: str) -> str:
        """The picture, relative to the root.

        Raises:
            BadMedia: it cannot be had, or is no picture.
        """
        if url not in self._found:
            self._found[url] = self._get(url)
        found = self._found[url]
        if isinstance(found, BadMedia):
            raise BadMedia(str(found))
        return found

    def _get(self, url: str) -> str | BadMedia:
        try:
            _parsed(url, self.allowed)  # also what was fetched before is used only while its host is allowed
            note = self.folder / "addresses" / f"{checksum_of(url.encode('utf-8', 'surrogatepass'))[:32]}.json"
            name = self._kept(note)
            if not name:
                data = fetch(url, self.allowed, self.network)
                check_picture(data)
                name = checksum_of(data)
                note.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.folder / name, data)
                write_json(note, {"url": url, "sha256": name})
            return f"{FOLDER}/{name}"
        except BadMedia as error:
            return error

    def _kept(self, note: Path) -> str:
        try:
            name = json.loads(note.read_text(encoding="utf-8"))["sha256"]
            whole = re.fullmatch(r"[0-9a-f]{64}", name) and checksum(self.folder / name) == name
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return name if whole else ""


def urls_in(row: Any, under: str = "") -> Iterable[str]:
    """The addresses of pictures that stand in a row, so that they can be fetched together; text is not looked at."""
    if isinstance(row, Mapping):
        for name, value in row.items():
            yield from urls_in(value, str(name))
    elif isinstance(row, (list, tuple)):
        for value in row:
            yield from urls_in(value, under)
    elif isinstance(row, str) and re.search(r"(^|_)(image|images|video|image_path)$", under) and is_url(row):
        yield row


def _parsed(url: str, allowed: AllowedHosts) -> tuple[str, str]:
    """Host and path of an address that is allowed."""
    shown, found = url[:200], _URL.fullmatch(url) if len(url) <= _LONGEST else None
    if found is None:
        raise BadMedia(
            f"{shown!r} is not fetched: give https://HOST/PATH without user, port, spaces and letters beyond ASCII, at most "
            f"{_LONGEST} characters"
        )
    host = found[1].lower()
    if not _NAME.fullmatch(host):
        raise BadMedia(f"{shown!r} is not fetched: {host!r} is not a host's name (addresses by number are not taken)")
    if not allowed.allow(host):
        raise BadMedia(f"{shown!r} is not fetched: {host} is none of the allowed hosts, {', '.join(allowed.hosts)}")
    target = found[2] or "/"
    return host, target if target.startswith("/") else f"/{target}"


def _within(end: float, look_up: Callable[[str], Sequence[str]], host: str, shown: str) -> Sequence[str]:
    """Look up a name; the system's own function knows no limit of time."""
    made: list[Sequence[str]] = []
    thread = threading.Thread(target=lambda: made.append(_or_nothing(look_up, host)), daemon=True)
    thread.start()
    thread.join(max(0.0, end - time.monotonic()))
    if not made or not made[0]:
        raise BadMedia(f"{shown!r} is not fetched: {host} has no address" + ("" if made else " in time"))
    return made[0]


def _or_nothing(look_up: Callable[[str], Sequence[str]], host: str) -> Sequence[str]:
    try:
        return look_up(host)
    except (OSError, UnicodeError):
        return ()


def _public(host: str, addresses: Sequence[str], shown: str) -> Sequence[str]:
    """The addresses, if everyone may connect to all of them."""
    if bad := [address for address in addresses if not is_public(address)]:
        raise BadMedia(f"{shown!r} is not fetched: {host} leads to {bad[0]}, which is not an address of the public internet")
    return addresses


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet. Fails closed: what is not known to belong to it does not."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if not found.is_global or found.is_multicast or found.is_reserved:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return found not in ipaddress.ip_network("192.88.99.0/24") and found not in ipaddress.ip_network("192.0.0.0/24")
    # Only what is given out; in 2002::/16 any IPv4 address can be written.
    return found in ipaddress.ip_network("2000::/3") and found.sixtofour is None and found.teredo is None


class _Pinned(httpcore2.NetworkBackend):
    """Connects to addresses that were looked at, whatever name is asked for, until the time is over."""

    def __init__(self, backend: httpcore2.NetworkBackend, addresses: Sequence[str], end: float):
        self.backend, self.addresses, self.end = backend, addresses, end

    def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        """As the class says."""
        assert port == 443
        failed: Exception | None = None
        for address in self.addresses:
            try:
                return _Timed(self.backend.connect_tcp(address, port, timeout=_left(self.end)), self.end)
            except httpcore2.ConnectError as error:
                failed = error
        raise failed or httpcore2.ConnectError(f"{host} has no address")


class _Timed(httpcore2.NetworkStream):
    """A connection that ends when the time is over, also if a little arrives again and again."""

    def __init__(self, stream: httpcore2.NetworkStream, end: float):
        self.stream, self.end = stream, end

    def read(self, max_bytes, timeout=None):
        return self.stream.read(max_bytes, _left(self.end))

    def write(self, buffer, timeout=None):
        self.stream.write(buffer, _left(self.end))

    def close(self):
        self.stream.close()

    def start_tls(self, ssl_context, server_hostname=None, timeout=None):
        return _Timed(self.stream.start_tls(ssl_context, server_hostname, _left(self.end)), self.end)

    def get_extra_info(self, info):
        return self.stream.get_extra_info(info)


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout("the time is over")
    return left


def _answer(pinned: _Pinned, trust: ssl.SSLContext, host: str, target: str, allowed: AllowedHosts) -> bytes | str:
    """The bytes at an address, or where it is redirected to."""
    shown = f"https://{host}{target}"[:200]
    headers = [("Host", host), ("Accept", "image/*"), ("Accept-Encoding", "identity"), ("User-Agent", "hardwon")]
    try:
        with (
            httpcore2.ConnectionPool(ssl_context=trust, network_backend=pinned, retries=0) as pool,
            pool.stream("GET", f"https://{host}{target}", headers=headers) as reply,
        ):
            told = {name.lower(): value.decode("latin-1") for name, value in reply.headers}
            if reply.status in _REDIRECTS and b"location" in told:
                return told[b"location"]
            if reply.status != 200:
                raise BadMedia(f"{shown!r}: the host answers with status {reply.status}")
            if told.get(b"content-encoding", "identity") != "identity":
                raise BadMedia(f"{shown!r}: the answer is compressed, which was not asked for")
            return _read(reply.iter_stream(), told.get(b"content-length", ""), shown, allowed.max_bytes)
    except httpcore2.TimeoutException as error:
        raise BadMedia(f"{shown!r} took longer than {allowed.timeout_s:g} s") from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError, ValueError) as error:
        raise BadMedia(f"{shown!r} cannot be fetched: {error or type(error).__name__}") from error


def _read(parts: Iterable[bytes], stated: str, shown: str, most: int) -> bytes:
    made = bytearray()
    too_large = f"{shown!r} is larger than the {most:,} bytes allowed: allow more with max_bytes"
    if stated.isdigit() and int(stated[:20]) > most:
        raise BadMedia(too_large)
    for part in parts:
        made += part
        if len(made) > most:
            raise BadMedia(too_large)
    return bytes(made)
