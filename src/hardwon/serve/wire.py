"""How requests are read from the wire: by httptools where it is there, with an end to how long a head may be."""

from typing import Any

HEAD = 1 << 16  # bytes of a first line and its headers; h11 has the same limit in uvicorn
TOO_LONG = "The first line and the headers of a request may have 64 kB together."


def protocol() -> Any:
    """What `uvicorn.Config` takes as `http`.

    httptools needs a third of h11's time, and keeps headers for as long as they come: a client that never ends them would
    fill the memory. What arrives in one read (256 kB) together with the end of another request is not counted.
    """
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "h11"

    class Bounded(HttpToolsProtocol):
        """Ends a connection whose request's head does not end."""

        _open, _length = False, 0  # whether a head is being read, and what has been read of it

        def data_received(self, data: bytes) -> None:
            """More bytes of the client."""
            before = self._open
            super().data_received(data)
            self._length = self._length + len(data) if before and self._open else 0
            if self._length > HEAD and not self.transport.is_closing():
                self.send_400_response(TOO_LONG)

        def on_message_begin(self) -> None:
            """A head begins."""
            self._open = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            """It ends."""
            self._open = False
            super().on_headers_complete()

    return Bounded
