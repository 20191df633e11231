"""All metrics of one application, in a registry of their own."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from server.engine import Engine
from server.metrics.answers import AnswerMetrics, EngineCollector
from server.metrics.jobs import JobCollector
from server.metrics.requests import RequestMetrics
from server.metrics.swaps import SwapMetrics
from server.services import Services

disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """Collects what an application does, from its start on.

    Args:
        engine: Answers; is observed from now on.
        services: What swaps checkpoints and keeps jobs; is observed from now on.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, engine: Engine, services: Services) -> None:
        self._registry = CollectorRegistry()
        self.requests = RequestMetrics(self._registry)
        engine.watch(AnswerMetrics(self._registry))
        self._registry.register(EngineCollector(engine))
        swaps = SwapMetrics(self._registry)
        if services.deployer is not None:
            services.deployer.watch(swaps)
        if services.jobs is not None:
            self._registry.register(JobCollector(services.jobs.counter))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Everything, in the text format of Prometheus; asks the database, so it may wait."""
        return generate_latest(self._registry)
