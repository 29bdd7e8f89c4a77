"""What the server counts, in the form that Prometheus reads."""

import time
from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from myllm.apps.batching import Batcher, Observer

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics(Observer):
    """Counts requests, and what happens in the queue."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "myllm_requests", "Answered requests", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "myllm_request_seconds", "Time from a request's head to the end of its answer", ["path"],
            buckets=SECONDS, registry=self.registry,
        )
        self.waited = Histogram(
            "myllm_queue_seconds", "Time that a picture waits for its batch", buckets=SECONDS, registry=self.registry
        )
        self.batches = Histogram(
            "myllm_batch_pictures", "Pictures of a batch", buckets=BATCHES, registry=self.registry
        )
        self.inference = Histogram(
            "myllm_inference_seconds", "Time that a batch computes", buckets=SECONDS, registry=self.registry
        )
        steps = Counter(
            "myllm_decode_steps", "Decoding steps of pictures; wanted=false: of those whose client had left",
            ["wanted"], registry=self.registry,
        )
        self.wanted, self.unwanted = steps.labels("true"), steps.labels("false")

    def watch(self, batcher: Batcher) -> None:
        """Report the size of the queue."""
        waiting = Gauge("myllm_queue_pictures", "Pictures that wait for their batch", registry=self.registry)
        waiting.set_function(lambda: batcher.waiting)
        pictures = Gauge("myllm_pictures", "Pictures that wait or are being captioned", registry=self.registry)
        pictures.set_function(lambda: batcher.places_taken)

    def batch_begins(self, waited: Sequence[float]) -> None:
        self.batches.observe(len(waited))
        for seconds in waited:
            self.waited.observe(seconds)

    def batch_ends(self, seconds: float) -> None:
        self.inference.observe(seconds)

    def step_ends(self, is_wanted: bool) -> None:
        (self.wanted if is_wanted else self.unwanted).inc()

    def request_ends(self, path: str, status: int, begin: float) -> None:
        """Count a request that began at `begin`, by `time.monotonic`."""
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(time.monotonic() - begin)

    def text(self) -> bytes:
        """Return all figures."""
        return generate_latest(self.registry)
