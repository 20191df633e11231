"""Requests as the network sees them: how many, how long, with what end."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram

from server.gate import App, Message, Receive, Scope, Send
from server.metrics.trace import Trace

UNROUTED = "unrouted"
"""The route of every request that reached none: refused at the gate, or its address unknown."""

OTHER = "other"
MOST_MODELS = 32
"""Checkpoints that are told apart; later ones share the label `other`."""

_FAILED = 500
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class RequestMetrics:
    """Counts requests.

    Args:
        registry: Where the metrics are found.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.in_flight = Gauge(
            "disp_requests_in_flight",
            "Requests being answered now, the one that reads this included.",
            registry=registry,
        )
        self._seconds = Histogram(
            "disp_request_duration_seconds",
            "Seconds from a request's head to the end of its answer.",
            ["route", "status", "model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first_text = Histogram(
            "disp_time_to_first_chunk_seconds",
            "Seconds from a streamed request's head to the first chunk with text.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._models: set[str] = set()

    def ended(self, scope: Scope, status: int, trace: Trace) -> None:
        """Counts a request whose answer has ended."""
        seconds = time.monotonic() - trace.began
        route = route_of(scope)
        self._seconds.labels(route, str(status), self._model(trace.checkpoint)).observe(seconds)
        if trace.first_text is not None:
            self._first_text.observe(trace.first_text - trace.began)

    def _model(self, checkpoint: str | None) -> str:
        """A bounded label: a server that is healed for years has served many checkpoints."""
        if checkpoint is None:
            return ""
        if len(self._models) < MOST_MODELS:
            self._models.add(checkpoint)
        return checkpoint if checkpoint in self._models else OTHER


def route_of(scope: Scope) -> str:
    """The template of the route that a request has reached, never its own path."""
    template = getattr(scope.get("route"), "path_format", None)
    return template if isinstance(template, str) else UNROUTED


class ObservedRequests:
    """Stands around everything else, so that refused requests count too. Plain ASGI.

    Args:
        app: What answers; finds the request's `Trace` in its state.
        metrics: Where requests are counted.
    """

    def __init__(self, app: App, *, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = Trace()
        state: dict[str, Any] = scope.setdefault("state", {})
        state["trace"] = trace
        status = _FAILED

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, watched)
            finally:
                self._metrics.ended(scope, status, trace)
