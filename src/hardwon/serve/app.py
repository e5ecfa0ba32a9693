"""Running the server: an address, the application, and an end that answers what has been accepted."""

import contextlib
import gc
import math
import socket
from collections.abc import Callable

import uvicorn

from hardwon.errors import RecipeError
from hardwon.items import Item
from hardwon.serve import wire
from hardwon.serve.api import Api, Served
from hardwon.serve.limits import Limits, is_loopback

GRACE_S = 2.0  # beyond the time in which a request has to be answered


def run(served: Served, limits: Limits, *, host: str, port: int, key: str, ready: Callable[[str], object]) -> None:
    """Serve until a signal says stop; then nothing new is accepted, and what was accepted is answered.

    Args:
        served: what is served.
        limits: of requests.
        host: address to listen at; only this machine's own may be used without a key.
        port: 0 for any that is free.
        key: that requests have to bring; "" for none.
        ready: called with the URL once requests are accepted.

    Raises:
        RecipeError: an address that others reach and no key, or one that cannot be listened at.
    """
    check_host(host, key)
    with _bound(host, port) as listener:
        served.embedder.encode([Item(text="warm")] if "text" in served.embedder.body.modalities else [])
        api = Api(served, limits, key)
        # What has been loaded stays. Looking through it for garbage would hold up all requests for half a second, now and then.
        gc.collect()
        gc.freeze()
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            api.guard,
            http=wire.protocol(),
            ws="none",
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=math.ceil(limits.timeout_s + GRACE_S),
        )
        with contextlib.suppress(KeyboardInterrupt):  # the way a server is stopped
            _Server(config, lambda: ready(url)).run(sockets=[listener])


def check_host(host: str, key: str) -> None:
    """Refuse to serve others without a key."""
    if not key and not is_loopback(host):
        raise RecipeError(
            f"{host!r} can be reached from other machines: name the environment variable that holds a key with --api-key-env, "
            "or listen at 127.0.0.1"
        )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell when requests are accepted."""
        await super().startup(sockets)
        if self.started:
            self._ready()


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with contextlib.ExitStack() as stack:
            made = stack.enter_context(socket.socket(family, kind))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            stack.pop_all()  # it stays open
    except OSError as error:
        raise RecipeError(f"cannot listen at {host} port {port} ({error.strerror}): choose another with --port") from None
    return made
