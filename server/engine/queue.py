"""The bounded queue in front of the engine, and how long it will take to have room."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from server.engine.job import Job, Ticket
from server.errors import Draining, QueueFull

_WEIGHT_OF_LAST = 0.3
_LONGEST_WAIT = 3600


class ServiceTimes:
    """A running mean of the seconds that one denoising step costs, masking included."""

    def __init__(self) -> None:
        self._seconds_per_step: float | None = None

    def record(self, work: int, seconds: float) -> None:
        """Adds a finished job of `work` steps."""
        last = seconds / max(work, 1)
        mean = last if self._seconds_per_step is None else self._seconds_per_step
        self._seconds_per_step = mean + _WEIGHT_OF_LAST * (last - mean)

    def expect(self, work: int) -> float:
        """Seconds that a job of `work` steps is expected to take; 0 if nothing is known."""
        return (self._seconds_per_step or 0.0) * work


class Place:
    """A place in the queue, held while a request is prepared; given back if it is not used."""

    def __init__(self, queue: AdmissionQueue, submit: Callable[[Job], Ticket]) -> None:
        self._queue = queue
        self._submit = submit
        self._open = True

    def submit(self, job: Job) -> Ticket:
        """Puts a job into the place."""
        if not self._open:
            raise RuntimeError("This place is used up.")
        self._open = False
        return self._submit(job)

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._open:
            self._open = False
            self._queue.give_back()


@dataclass(frozen=True, eq=False)
class Turn:
    """Something the engine does between two answers; it takes no place."""

    act: Callable[[], None]


class AdmissionQueue:
    """First in, first out; at most `size` places, reserved ones included."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._changed = threading.Condition()
        self._waiting: deque[Ticket | Turn] = deque()
        self._turns = 0
        self._reserved = 0
        self._running: Ticket | None = None
        self._closed = False
        self.refused = 0
        self.times = ServiceTimes()

    @property
    def waiting(self) -> int:
        return len(self._waiting) - self._turns

    @property
    def running(self) -> Ticket | None:
        return self._running

    def reserve(self) -> None:
        """Takes a place.

        Raises:
            QueueFull: If there is none, with the seconds until one should be free.
            Draining: If the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise Draining(retry_after=_as_retry_after(self._seconds_to_room()))
            if self.waiting + self._reserved >= self._size:
                self.refused += 1
                raise QueueFull(retry_after=_as_retry_after(self._seconds_to_room()))
            self._reserved += 1

    def give_back(self) -> None:
        """Frees a reserved place."""
        with self._changed:
            self._reserved -= 1

    def put(self, ticket: Ticket) -> None:
        """Puts a ticket into a reserved place.

        Raises:
            Draining: If the queue was closed in between; the place is free again.
        """
        with self._changed:
            self._reserved -= 1
            if self._closed:
                raise Draining(retry_after=1)
            self._waiting.append(ticket)
            self._changed.notify()

    def put_turn(self, turn: Turn, *, last: bool) -> None:
        """Puts a turn before everything that waits, or with `last` behind it.

        Raises:
            Draining: If the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise Draining(retry_after=1)
            (self._waiting.append if last else self._waiting.appendleft)(turn)
            self._turns += 1
            self._changed.notify()

    def take(self) -> Ticket | Turn | None:
        """Waits for what comes next; a ticket is the running one from now on.

        Returns:
            None once the queue is closed and empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            item = self._waiting.popleft() if self._waiting else None
            self._running = item if isinstance(item, Ticket) else None
            if isinstance(item, Turn):
                self._turns -= 1
            if self._running is not None:
                self._running.started = time.monotonic()
            return item

    def done(self, ticket: Ticket, *, completed: bool) -> None:
        """Says that the running ticket has ended; a completed one is measured."""
        with self._changed:
            self._running = None
            if completed and ticket.started is not None:
                self.times.record(ticket.job.work, time.monotonic() - ticket.started)

    def discard(self, ticket: Ticket) -> bool:
        """Takes a waiting ticket out; False if it is not waiting."""
        with self._changed:
            try:
                self._waiting.remove(ticket)
            except ValueError:
                return False
            return True

    def inside(self) -> list[Ticket]:
        """The running ticket and the waiting ones."""
        with self._changed:
            waiting = [item for item in self._waiting if isinstance(item, Ticket)]
            return [*([self._running] if self._running else []), *waiting]

    def close(self) -> None:
        """Takes no more tickets; those inside are still served."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _seconds_to_room(self) -> float:
        """A place is free when the running ticket ends and the next one is taken up."""
        if self._running is None or self._running.started is None:
            return 0.0
        elapsed = time.monotonic() - self._running.started
        return max(0.0, self.times.expect(self._running.job.work) - elapsed)


def _as_retry_after(seconds: float) -> int:
    return min(max(1, math.ceil(seconds)), _LONGEST_WAIT)
