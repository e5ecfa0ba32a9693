"""Numbers of a running server, in the form that Prometheus reads."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TYPE = CONTENT_TYPE_LATEST
ONE = "/v1/models/{model}"


class Metrics:
    """Counts requests and batches; paths that are not of the server count as "other", so that nobody can make more of them."""

    def __init__(self) -> None:
        self._registry, self._paths = CollectorRegistry(), frozenset()
        self._counted: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._requests = Counter("hardwon_requests", "Requests answered.", ("path", "status"), registry=self._registry)
        self._seconds = Histogram(
            "hardwon_request_seconds", "Time to the answer.", ("path",), buckets=SECONDS, registry=self._registry
        )
        self._rows = Histogram(
            "hardwon_batch_rows", "Items or pairs computed together.", ("work",), buckets=SIZES, registry=self._registry
        )
        self._together = Histogram(
            "hardwon_batch_requests", "Requests computed together.", ("work",), buckets=SIZES, registry=self._registry
        )
        self._tokens = Counter("hardwon_tokens", "Tokens computed, about.", ("work",), registry=self._registry)

    def watch(self, paths: frozenset[str], pending: Callable[[], float], held: Callable[[], float]) -> None:
        """Name the paths of the server, and what says how much is under way."""
        self._paths = paths
        Gauge("hardwon_pending_requests", "Requests under way.", registry=self._registry).set_function(pending)
        Gauge("hardwon_held_bytes", "Bytes of their bodies.", registry=self._registry).set_function(held)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request was answered; 499: its client was gone before."""
        known = path if path in self._paths else ONE if path.startswith(ONE.partition("{")[0]) else "other"
        counted = self._counted.get((known, status))
        if counted is None:  # looking labels up takes longer than counting
            counted = self._counted[known, status] = self._requests.labels(known, str(status)), self._seconds.labels(known)
        counted[0].inc()
        counted[1].observe(seconds)

    def computed(self, work: str, requests: int, rows: int, tokens: int) -> None:
        """A batch was computed."""
        self._rows.labels(work).observe(rows)
        self._together.labels(work).observe(requests)
        self._tokens.labels(work).inc(tokens)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)
