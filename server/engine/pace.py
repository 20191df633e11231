"""How fast the engine is, as measured, and how long it will take to have room."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

_WEIGHT_OF_LAST = 0.3


@dataclass(frozen=True)
class Load:
    """What a request takes of the running batch.

    Attributes:
        positions: Sequence positions, those of guidance included.
        steps: Denoising steps left.
    """

    positions: int
    steps: float


@dataclass(frozen=True)
class Room:
    """How many requests run together.

    Attributes:
        requests: Requests at most.
        positions: Sequence positions at most, summed over the requests; one that is longer
            runs alone.
    """

    requests: int
    positions: int

    def takes(self, positions: int, running: Sequence[int]) -> bool:
        """Whether a request has room beside the positions of those that run."""
        if not running:
            return True
        return len(running) < self.requests and sum(running) + positions <= self.positions

    def steps_until(self, positions: int, running: Sequence[Load]) -> float:
        """Denoising steps until enough of the running requests have left for another one."""
        left = sorted(running, key=lambda load: load.steps)
        passed = 0.0
        while not self.takes(positions, [load.positions for load in left]):
            passed = left.pop(0).steps
        return passed


class Mean:
    """A running mean that follows what is measured."""

    def __init__(self) -> None:
        self.value: float | None = None

    def record(self, value: float) -> None:
        mean = value if self.value is None else self.value
        self.value = mean + _WEIGHT_OF_LAST * (value - mean)


class Pace:
    """The engine's measured throughput.

    The seconds of a step are those from one step of the running batch to the next, so they
    hold what lies between: the passes of newcomers, and the cost of company.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._step_seconds = Mean()
        self._begin_seconds = Mean()
        self._used = Mean()
        self._since: float | None = None
        self._begun_at: float | None = None

    @property
    def steps_per_second(self) -> float:
        """Denoising steps of the running batch in a second; 0 if nothing is known."""
        return 1 / self._step_seconds.value if self._step_seconds.value else 0.0

    def begins(self) -> None:
        """A newcomer is taken up."""
        self._begun_at = self._clock()

    def joins(self, *, alone: bool) -> None:
        """The newcomer joins the running batch, or with `alone` is the first of it."""
        now = self._clock()
        if self._begun_at is not None:
            self._begin_seconds.record(now - self._begun_at)
        self._begun_at = None
        if alone:
            self._since = now

    def gives_up(self) -> None:
        """The newcomer ends before it joins; nothing is learnt from it."""
        self._begun_at = None

    def steps(self) -> None:
        """The running batch has made a step."""
        now = self._clock()
        if self._since is not None:
            self._step_seconds.record(now - self._since)
        self._since = now

    def ends(self, steps: int, of: int) -> None:
        """A response is whole after so many of its steps: stop sequences end some early."""
        self._used.record(steps / max(of, 1))

    def steps_left(self, steps: int, of: int) -> float:
        """Denoising steps that a response is expected to take yet, at least one."""
        used = 1.0 if self._used.value is None else self._used.value
        return max(1.0, used * of - steps)

    def learn(self, begin_seconds: float, step_seconds: float) -> None:
        """Takes a measurement made elsewhere: the first answer."""
        self._begin_seconds.record(begin_seconds)
        self._step_seconds.record(step_seconds)

    def seconds_until(self, steps: float) -> float:
        """Seconds until so many steps are made and a newcomer that is taken up has joined."""
        stepping = steps * (self._step_seconds.value or 0.0)
        beginning = 0.0
        begun_at = self._begun_at  # the engine's thread may set it to None at any moment
        if begun_at is not None:
            beginning = (self._begin_seconds.value or 0.0) - (self._clock() - begun_at)
        return max(stepping, beginning, 0.0)


def as_retry_after(seconds: float, longest: int = 3600) -> int:
    """Whole seconds for the header, at least one."""
    return min(max(1, ceil(seconds)), longest)
