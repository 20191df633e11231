"""The bounded queue in front of the engine."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from server.engine.job import Job, Progress, Serving, Ticket
from server.engine.pace import as_retry_after
from server.errors import Draining, QueueFull


class Place:
    """A place in the queue, held while a request is prepared; given back if it is not used."""

    def __init__(
        self,
        queue: AdmissionQueue,
        submit: Callable[[Job, Progress | None, Serving | None], Ticket],
    ) -> None:
        self._queue = queue
        self._submit = submit
        self._open = True

    def submit(
        self, job: Job, progress: Progress | None = None, serving: Serving | None = None
    ) -> Ticket:
        """Puts a job into the place.

        Args:
            job: What is asked.
            progress: Hears on the engine's thread how far the answer is; see `Ticket`.
            serving: The model that the job was prepared for; by default the one that answered
                when the place was taken.
        """
        if not self._open:
            raise RuntimeError("This place is used up.")
        self._open = False
        return self._submit(job, progress, serving)

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
    """Something the engine does between two denoising steps; it takes no place.

    Attributes:
        act: What it does.
        alone: Whether it waits until nothing runs any more.
    """

    act: Callable[[], None]
    alone: bool = False


class AdmissionQueue:
    """First in, first out; at most `size` places, reserved ones included.

    Args:
        size: Places.
        seconds_to_room: Seconds until a place should be free.
    """

    def __init__(self, size: int, seconds_to_room: Callable[[], float] = lambda: 0.0) -> None:
        self._size = size
        self._seconds_to_room = seconds_to_room
        self._changed = threading.Condition()
        self._waiting: deque[Ticket | Turn] = deque()
        self._turns = 0
        self._reserved = 0
        self._running: list[Ticket] = []
        self._closed = False

    @property
    def waiting(self) -> int:
        return len(self._waiting) - self._turns

    @property
    def running(self) -> int:
        """Tickets that were taken and have not ended."""
        return len(self._running)

    @property
    def next_ticket(self) -> Ticket | None:
        """The ticket that has waited longest."""
        with self._changed:
            return next((item for item in self._waiting if isinstance(item, Ticket)), None)

    def reserve(self) -> None:
        """Takes a place.

        Raises:
            QueueFull: If there is none, with the seconds until one should be free.
            Draining: If the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise Draining(retry_after=as_retry_after(self._seconds_to_room()))
            if self.waiting + self._reserved >= self._size:
                raise QueueFull(retry_after=as_retry_after(self._seconds_to_room()))
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

    def take(self, fits: Callable[[Ticket], bool], *, wait: bool) -> Ticket | Turn | None:
        """What comes next, if its time has come; nobody overtakes.

        Args:
            fits: Whether a ticket has room beside those that run. A ticket that is taken runs
                from now on.
            wait: Whether to wait for something; for an engine where nothing runs.

        Returns:
            None if the next one has to wait, or nothing waits; with `wait` only once the
            queue is closed and empty.
        """
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            item = self._waiting[0]
            if not ((wait or not item.alone) if isinstance(item, Turn) else fits(item)):
                return None
            self._waiting.popleft()
            if isinstance(item, Turn):
                self._turns -= 1
            else:
                item.started = time.monotonic()
                self._running.append(item)
            return item

    def done(self, ticket: Ticket) -> None:
        """Says that a running ticket has ended."""
        with self._changed:
            self._running.remove(ticket)

    def discard(self, ticket: Ticket) -> bool:
        """Takes a waiting ticket out; False if it is not waiting."""
        with self._changed:
            try:
                self._waiting.remove(ticket)
            except ValueError:
                return False
            return True

    def expired(self, now: float) -> list[Ticket]:
        """Takes the waiting tickets out whose deadline is before `now` (monotonic seconds)."""
        with self._changed:
            late = [
                item for item in self._waiting if isinstance(item, Ticket) and item.deadline < now
            ]
            for ticket in late:
                self._waiting.remove(ticket)
            return late

    def inside(self) -> list[Ticket]:
        """The running tickets and the waiting ones."""
        with self._changed:
            waiting = [item for item in self._waiting if isinstance(item, Ticket)]
            return [*self._running, *waiting]

    def clear(self) -> list[Ticket]:
        """Takes the running tickets and the waiting ones out; turns are forgotten."""
        with self._changed:
            waiting = [item for item in self._waiting if isinstance(item, Ticket)]
            found = [*self._running, *waiting]
            self._running.clear()
            self._waiting.clear()
            self._turns = 0
            return found

    def close(self) -> None:
        """Takes no more tickets; those inside are still served."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
