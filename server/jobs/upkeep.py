"""What a worker does beside its jobs: say that it lives, take over from the dead, find new work."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dbos import DBOS

from server.errors import DatabaseUnavailable
from server.jobs.workflow import PIPELINE, QUEUE_OF, Pipeline
from server.store.attempts import Attempts
from server.store.database import LOCK_SECONDS
from server.store.workers import WorkerTable

_log = logging.getLogger("disp.jobs")


@dataclass(frozen=True)
class Timings:
    """How often a worker looks after things, in seconds.

    Attributes:
        heartbeat: Between two signs of life.
        patience: Without a sign of life, after which a worker is dead; it goes on trying for so
            long when the database is away.
        poll: Between two looks for work.
        grace: For running steps to stop when the worker is asked to.
        lock_wait: That a transaction waits for SQLite's write lock before it is tried again.
    """

    heartbeat: float = 10.0
    patience: float = 60.0
    poll: float = 1.0
    grace: float = 30.0
    lock_wait: float = LOCK_SECONDS


class Upkeep:
    """A thread that keeps a worker alive in the eyes of the others.

    Args:
        executor: The worker's executor id.
        workers: The table of workers.
        attempts: What workers write about jobs.
        pipeline: Takes new attempts.
        timings: How often.
        scratch: Where every worker has its folder, named by executor id.
        lost: Called when the worker must end at once, for others take it for dead.
    """

    def __init__(
        self,
        executor: str,
        workers: WorkerTable,
        attempts: Attempts,
        pipeline: Pipeline,
        timings: Timings,
        scratch: Path,
        lost: Callable[[], None],
    ) -> None:
        self._executor = executor
        self._workers = workers
        self._attempts = attempts
        self._pipeline = pipeline
        self._timings = timings
        self._scratch = scratch
        self._lost = lost
        self._last_beat = time.monotonic()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._every, args=(seconds, work), daemon=True)
            for seconds, work in (
                (timings.heartbeat, self._beat),
                (timings.poll, self._look_around),
            )
        ]

    def start(self) -> None:
        """Begins."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends; returns when nothing is under way any more."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _every(self, seconds: float, work: Callable[[], None]) -> None:
        while True:
            try:
                work()
            except DatabaseUnavailable:
                _log.warning("The database does not answer the upkeep of the worker; it goes on.")
            except Exception:
                _log.exception("The upkeep of the worker failed; it goes on.")
            if time.monotonic() - self._last_beat > self._timings.patience:
                _log.error("The database was out of reach for too long; the worker ends.")
                self._lost()
            if self._stopping.wait(seconds):
                return

    def _beat(self) -> None:
        if self._workers.beat(self._executor):
            self._last_beat = time.monotonic()
            return
        _log.error("This worker was taken for dead, and another one has taken over; it ends.")
        self._workers.give_in(self._executor)
        self._lost()

    def _look_around(self) -> None:
        for dead in self._workers.claim_dead(self._executor):
            self._take_over(dead)
        for attempt in self._attempts.waiting(PIPELINE):
            self._pipeline.enqueue(attempt)
            self._attempts.dispatched(attempt, PIPELINE)

    def _take_over(self, dead: str) -> None:
        """Puts back into their queues what a dead worker had in hand."""
        for name, queue in QUEUE_OF.items():
            found = DBOS.list_workflows(
                status="PENDING", executor_id=dead, name=name, load_input=False, load_output=False
            )
            if found:
                ids = [workflow.workflow_id for workflow in found]
                DBOS.resume_workflows(ids, queue_name=queue)
                _log.warning("Took over %d workflows (%s) from %s.", len(ids), name, dead)
        shutil.rmtree(self._scratch / dead, ignore_errors=True)
        self._workers.reaped(dead)
