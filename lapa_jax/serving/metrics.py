"""What Prometheus reads at /metrics."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """Counters of one server; a registry of its own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        of = {"registry": self.registry}
        self._requests = Counter(
            "lapa_requests", "Requests for a prediction", ["protocol", "status"], **of
        )
        self._seconds = Histogram(
            "lapa_request_seconds",
            "From message or REST head to answer",
            buckets=_SECONDS,
            **of,
        )
        self._infer = Histogram(
            "lapa_infer_seconds", "The model's call, of a batch", buckets=_SECONDS, **of
        )
        self._batch = Histogram(
            "lapa_batch_size", "Observations in a batch", buckets=(1, 2, 4, 8, 16, 32, 64), **of
        )
        self.connections = Gauge("lapa_websockets", "WebSockets that are open", **of)

    def request(self, protocol: str, status: int, seconds: float) -> None:
        self._requests.labels(protocol, str(status)).inc()
        self._seconds.observe(seconds)

    def batch(self, size: int, seconds: float) -> None:
        self._batch.observe(size)
        self._infer.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
