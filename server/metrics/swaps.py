"""Swaps of the checkpoint that serves."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class SwapMetrics:
    """Hears of every swap; see `server.deployer.SwapObserver`.

    Args:
        registry: Where the metrics are found.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "disp_swap_seconds",
            "Seconds from the check of a checkpoint's files to its first answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        ends = Counter("disp_swaps", "Swaps, by how they ended.", ["outcome"], registry=registry)
        self._done, self._failed = ends.labels("done"), ends.labels("failed")

    def swapped(self, seconds: float) -> None:
        """A checkpoint serves now."""
        self._done.inc()
        self._seconds.observe(seconds)

    def not_swapped(self) -> None:
        """A checkpoint could not take the place of the one that serves."""
        self._failed.inc()
