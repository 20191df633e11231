"""Answers, denoising steps and the queue, as the engine counts them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from purifier.answer import Answer
from server.engine import Engine, EngineCounters, Ticket
from server.errors import NotReady

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_UNITS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


class AnswerMetrics:
    """Hears of every answer; see `server.engine.Observer`.

    Args:
        registry: Where the metrics are found.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"disp_{name}_seconds", text, buckets=_SECONDS, registry=registry)

        self._queue = seconds("queue", "Seconds that an answered request has waited.")
        self._encode = seconds("encode", "Seconds of encoding the images of an answered request.")
        self._saliency = seconds("saliency", "Seconds of scoring the images of a request.")
        self._denoise = seconds("denoise", "An answer's even share of the seconds of its steps.")
        self._masked = Histogram(
            "disp_masked_visual_tokens",
            "Visual tokens, or at level patch cells of the image plane, masked in a request.",
            ["level"],
            buckets=_UNITS,
            registry=registry,
        )

    def answered(self, ticket: Ticket, answer: Answer) -> None:
        """Takes the parts of an answer in; what was shared with another request costs nothing."""
        timings = answer.timings
        self._queue.observe(ticket.queue_seconds)
        self._denoise.observe(timings["denoise"])
        if answer.n_visual_tokens and timings["encode"] > 0:
            self._encode.observe(timings["encode"])
        masking = ticket.job.masking
        if masking is not None and answer.masked is not None:
            if timings["saliency"] > 0:
                self._saliency.observe(timings["saliency"])
            self._masked.labels(masking.level).observe(int(answer.masked.sum()))


class EngineCollector(Collector):
    """Reads the engine when it is asked.

    Args:
        engine: Answers.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """Its queue, its counters, and the checkpoint that serves."""
        counters = self._engine.counters
        yield GaugeMetricFamily(
            "disp_queue_depth", "Requests that wait for the engine.", self._engine.waiting
        )
        yield GaugeMetricFamily(
            "disp_requests_running", "Requests being denoised.", self._engine.running
        )
        yield _outcomes(counters)
        for name, text, value in (
            ("requests_refused", "Requests that found the queue full.", counters.refused),
            ("answer_tokens", "Tokens of all answers.", counters.tokens),
            ("defences_shared", "Defences taken from an identical request.", counters.shared),
            ("denoise_steps", "Passes of a model that denoised.", counters.steps),
        ):
            yield CounterMetricFamily(f"disp_{name}", text, value)
        yield _batches(counters)
        yield self._checkpoint()

    def _checkpoint(self) -> Metric:
        family = GaugeMetricFamily(
            "disp_active_checkpoint_info",
            "1 for the checkpoint that answers.",
            labels=["checkpoint"],
        )
        with suppress(NotReady):  # nothing answers: there is no such series
            family.add_metric([self._engine.serving().checkpoint], 1)
        return family


def _outcomes(counters: EngineCounters) -> Metric:
    family = CounterMetricFamily(
        "disp_answers", "Requests that left the engine, by how.", labels=["outcome"]
    )
    ends: Mapping[str, int] = {
        "completed": counters.completed,
        "cancelled": counters.cancelled,
        "expired": counters.expired,
        "failed": counters.failed - counters.expired,
    }
    for outcome, count in ends.items():
        family.add_metric([outcome], count)
    return family


def _batches(counters: EngineCounters) -> Metric:
    below = [
        (str(float(most)), sum(n for size, n in counters.batches.items() if size <= most))
        for most in _BATCHES
    ]
    return HistogramMetricFamily(
        "disp_denoise_step_batch_size",
        "Requests that shared a denoising step.",
        buckets=[*below, ("+Inf", counters.steps)],
        sum_value=counters.request_steps,
    )
