"""Count requests for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

GONE = 499  # the "status" of a request whose client hung up, as nginx counts it


class Metrics:
    """Count the requests of a server by route and status, and time them; waiting returns the texts that wait."""

    def __init__(self, waiting: Callable[[], float]):
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter("simcse_requests", "Requests.", ["path", "status"], registry=self._registry)
        self._seconds = Histogram("simcse_request_seconds", "Time to answer.", ["path"], registry=self._registry)
        texts = Gauge("simcse_waiting_texts", "Texts that wait; a long one counts as several.", registry=self._registry)
        texts.set_function(waiting)

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count one request. path: of its route, not of its URL, so that there are few."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Return all numbers in Prometheus's format."""
        return generate_latest(self._registry)
