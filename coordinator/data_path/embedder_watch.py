"""What becomes of the texts of collections: counted for Prometheus, and noted for health checks."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Sequence

from annheal.embedding.protocol import BadAnswer, Refused
from annheal.embedding.texts import NoVector
from annheal.errors import AnnhealError, FailedPrecondition, ResourceExhausted, Unavailable
from annheal.runtime.metrics import Metrics
from annheal.runtime.part_tracker import PartTracker


class EmbedderMetrics:
    """Counters of the process, by collection."""

    def __init__(self, metrics: Metrics) -> None:
        by_collection = ("collection",)
        self.requests = metrics.counter(
            "annheal_embedder_requests",
            "Requests to embedders, failed ones included.",
            labels=by_collection,
        )
        self.seconds = metrics.histogram(
            "annheal_embedder_seconds",
            "Time of a request to an embedder, waits before it left out.",
            labels=by_collection,
        )
        self.texts = metrics.counter(
            "annheal_embedder_texts", "Texts that were embedded.", labels=by_collection
        )
        self.failures = metrics.counter(
            "annheal_embedder_failures",
            "Requests to embedders that failed, and texts without a vector (text_...), by reason.",
            labels=("collection", "reason"),
        )


class EmbedderWatch:
    """Notes the requests for one collection; see `annheal.embedding.texts.Observer`."""

    def __init__(
        self, collection: str, *, tracker: PartTracker, metrics: EmbedderMetrics | None
    ) -> None:
        self._collection = collection
        self._tracker = tracker
        self._metrics = metrics

    def request(self, seconds: float, error: Exception | None) -> None:
        """Note one request."""
        if isinstance(error, Unavailable | ResourceExhausted | FailedPrecondition):
            self._tracker.failed(error)
        elif error is None:
            self._tracker.succeeded()
        if self._metrics is not None:
            self._metrics.requests.add(1, self._collection)
            self._metrics.seconds.observe(seconds, self._collection)
            if error is not None:
                self._metrics.failures.add(1, self._collection, reason_word(error))

    def texts(self, embedded: int, missing: Sequence[NoVector]) -> None:
        """Note the texts of one call."""
        if self._metrics is None:
            return
        self._metrics.texts.add(embedded, self._collection)
        for fault, count in Counts(one.fault.value for one in missing).items():
            self._metrics.failures.add(count, self._collection, f"text_{fault}")


def reason_word(error: Exception) -> str:
    """Return the word by which a failure is counted, such as `rate_limit`."""
    match error:
        case Refused():
            return "refused"
        case BadAnswer():
            return "bad_answer"
        case AnnhealError():
            return error.reason.lower().removeprefix("embedder_")
    return "other"
