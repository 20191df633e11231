"""What the engine has done since its start: the one place that counts."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from purifier.answer import Answer


@dataclass(frozen=True)
class EngineCounters:
    """What has become of the jobs since the start, and what the model did for them.

    Attributes:
        admitted: Jobs that reached the queue; each ends in one of the next three.
        completed: Jobs that were answered.
        failed: Jobs that ended in an error, deadlines and shutdowns included.
        cancelled: Jobs whose client went away.
        expired: Those of `failed` that ran into their deadline.
        refused: Requests that found the queue full; they were not admitted.
        batches: Size of a denoising step -> steps of that size. A step is one pass of one
            model for all running requests that it answers.
        tokens: Response tokens of completed jobs.
        units: What mask ratios of completed, defended jobs count.
        masked_units: Those of them that were masked.
        encode_seconds: Of completed jobs.
        saliency_seconds: Of completed jobs; nothing for those that shared it.
        mask_seconds: Of completed jobs.
        denoise_seconds: Of completed jobs, the seconds of shared steps split evenly.
        shared: Defences that were taken from an earlier, identical request.
        not_shared: Defences that were computed though sharing is on.
    """

    admitted: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    refused: int = 0
    batches: Mapping[int, int] = field(default_factory=dict)
    tokens: int = 0
    units: int = 0
    masked_units: int = 0
    encode_seconds: float = 0.0
    saliency_seconds: float = 0.0
    mask_seconds: float = 0.0
    denoise_seconds: float = 0.0
    shared: int = 0
    not_shared: int = 0

    @property
    def steps(self) -> int:
        """Denoising steps of the model."""
        return sum(self.batches.values())

    @property
    def request_steps(self) -> int:
        """Denoising steps as the requests count them; above `steps` where steps were shared."""
        return sum(size * steps for size, steps in self.batches.items())

    @property
    def largest_batch(self) -> int:
        """Requests of the largest step."""
        return max(self.batches, default=0)


class Counting:
    """Adds up `EngineCounters`; any thread may count and read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, Any] = {}
        self._batches: Counter[int] = Counter()

    def add(self, *names: str) -> None:
        """Adds one to each of the named counters."""
        with self._lock:
            for name in names:
                self._increase(name, 1)

    def add_step(self, size: int) -> None:
        """Adds a denoising step that `size` requests shared."""
        with self._lock:
            self._batches[size] += 1

    def add_answer(self, answer: Answer) -> None:
        """Adds a completed job."""
        # May wait for the device, and fail with it: before anything is counted.
        masked = None if answer.masked is None else int(answer.masked.sum())
        with self._lock:
            self._increase("completed", 1)
            self._increase("tokens", len(answer.token_ids))
            if masked is not None:
                self._increase("units", answer.n_units)
                self._increase("masked_units", masked)
            for part, seconds in answer.timings.items():
                self._increase(f"{part}_seconds", seconds)

    def read(self) -> EngineCounters:
        """The counters now."""
        with self._lock:
            return EngineCounters(**self._sums, batches=dict(self._batches))

    def _increase(self, name: str, by: float) -> None:
        self._sums[name] = self._sums.get(name, 0) + by
