"""The thread that owns the model."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from purifier.answer import answer_inputs
from purifier.defense.config import MaskingConfig
from purifier.errors import InvalidPrompt as PromptError
from purifier.errors import InvalidSetting as SettingError
from purifier.errors import PurifierError
from server.engine import canary
from server.engine.job import Job, Serving, Ticket
from server.engine.queue import AdmissionQueue, Place, Turn
from server.errors import (
    ClientDisconnected,
    DeadlineExceeded,
    Draining,
    GenerationFailed,
    InvalidSetting,
    NotReady,
    ServerError,
)

_log = logging.getLogger("disp.engine")

EngineState = Literal["loading", "ready", "failed", "draining", "stopped"]

_LAST_STEP_SECONDS = 10.0


@dataclass(frozen=True)
class EngineCounters:
    """What has become of the jobs since the start."""

    admitted: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0


def _nothing(serving: Serving) -> None:
    pass


class Engine:
    """Loads a model, proves that it answers, and answers jobs until it is closed.

    `swap` puts another model in its place between two answers.

    Args:
        load: Loads the model; called on the engine thread.
        queue_size: Jobs that may wait.
        deadline: Seconds one generation may take.
        masking: The defence that the warm-up answer runs through.
    """

    def __init__(
        self,
        load: Callable[[], Serving],
        *,
        queue_size: int,
        deadline: float,
        masking: MaskingConfig | None = None,
    ) -> None:
        self._load = load
        self._deadline = deadline
        self._masking = masking
        self._queue = AdmissionQueue(queue_size)
        self._counters = EngineCounters()
        self._counting = threading.Lock()
        self._state: EngineState = "loading"
        self._serving: Serving | None = None
        self._known: weakref.WeakSet[Serving] = weakref.WeakSet()
        self._swaps: set[Future[Serving]] = set()
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.ready: Future[Serving] = Future()
        """Ends when the model has answered for the first time, or could not be loaded."""
        self.ready.set_running_or_notify_cancel()

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def counters(self) -> EngineCounters:
        return self._counters

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return self._queue.waiting

    @property
    def running(self) -> int:
        """Jobs being answered: 0 or 1."""
        return int(self._queue.running is not None)

    @property
    def refused(self) -> int:
        """Jobs that found the queue full."""
        return self._queue.refused

    def start(self) -> None:
        """Begins to load."""
        self._thread.start()

    def serving(self) -> Serving:
        """The model that answers now.

        Raises:
            NotReady: If there is none yet.
        """
        if self._serving is None:
            raise NotReady(retry_after=5)
        return self._serving

    def reserve(self, serving: Serving | None = None) -> Place:
        """Takes a place in the queue, to be used or given back as a context.

        Args:
            serving: The model that the job will be prepared for; by default the one that
                answers now.

        Raises:
            NotReady, QueueFull, Draining: If there is none.
        """
        chosen = serving or self.serving()
        self._queue.reserve()
        return Place(self._queue, lambda job: self._admit(job, chosen))

    def swap(
        self,
        load: Callable[[], Serving],
        *,
        commit: Callable[[Serving], object] = _nothing,
        restore: Callable[[], Serving] | None = None,
    ) -> Future[Serving]:
        """Puts another model in the place of the one that answers.

        The new one answers a first question before anything changes. Between two answers
        `commit` is called and the new one takes over: every job admitted from then on is its
        own, and those admitted before are still answered by the old one.

        With `restore` the two do not fit into the memory together: the old one answers what
        waits, its weights are dropped, and only then `load` is called, while new jobs wait.

        Args:
            load: Loads the new model; called on a thread of its own, or with `restore` on the
                engine's.
            commit: Makes the change known; called on the engine thread. If it raises, nothing
                has changed.
            restore: Loads the old model again, should the new one fail after the old one's
                weights were dropped.

        Returns:
            Ends in the new model, or in the error for which everything stays as it was.
        """
        done: Future[Serving] = Future()
        done.set_running_or_notify_cancel()
        self._swaps.add(done)
        done.add_done_callback(self._swaps.discard)
        if restore is None:
            aside = threading.Thread(
                target=self._load_aside, args=(load, commit, done), name="swap", daemon=True
            )
            aside.start()
        else:
            self._put_turn(lambda: self._replace(load, commit, restore), done, last=True)
        return done

    def cancel(self, ticket: Ticket) -> None:
        """Takes a job out of the queue, or stops it before its next denoising step."""
        ticket.cancelled.set()
        if self._queue.discard(ticket):
            self._count("cancelled")
            ticket.fail(ClientDisconnected())

    def close(self, timeout: float | None = None) -> bool:
        """Takes no more jobs, answers those inside, and ends the thread.

        Args:
            timeout: Seconds after which what is left ends in `Draining`.

        Returns:
            Whether every job inside was answered.
        """
        if self._state in ("loading", "ready"):
            self._state = "draining"
        self._queue.close()
        if self._serving is not None:
            self._thread.join(timeout)
        answered = not self._thread.is_alive()
        self.abandon()
        if self._serving is not None:
            self._thread.join(_LAST_STEP_SECONDS)
        return answered

    def abandon(self) -> None:
        """Ends every job inside now; the model stops before its next pass."""
        self._queue.close()
        self._abandoned.set()
        for ticket in self._queue.inside():
            ticket.fail(Draining(retry_after=1))
        for done in list(self._swaps):
            _fail(done, Draining(retry_after=1))

    def _count(self, what: Literal["admitted", "completed", "failed", "cancelled"]) -> None:
        with self._counting:
            changed = {what: getattr(self._counters, what) + 1}
            self._counters = replace(self._counters, **changed)

    def _admit(self, job: Job, serving: Serving) -> Ticket:
        ticket = Ticket(job, serving)
        self._queue.put(ticket)
        self._count("admitted")
        return ticket

    def _run(self) -> None:
        try:
            serving = self._load()
            self._warm_up(serving)
        except Exception as error:
            if not isinstance(error, PurifierError):
                _log.exception("The model could not be loaded or has not answered.")
            self._state = "failed"
            self.ready.set_exception(error)
            return
        self._take_over(serving)
        if self._state == "loading":
            self._state = "ready"
        self.ready.set_result(serving)
        while (item := self._queue.take()) is not None:
            if isinstance(item, Turn):
                item.act()
            else:
                self._answer(item)
        if self._state != "failed":
            self._state = "stopped"

    def _warm_up(self, serving: Serving) -> None:
        """Answers one question, defended; the first measurement of the service time."""
        _, seconds = canary.ask(serving, self._masking, self._stop_if_abandoned)
        self._queue.times.record(canary.GENERATION.n_steps, seconds)

    def _take_over(self, serving: Serving) -> None:
        self._known.add(serving)
        self._serving = serving

    def _load_aside(
        self,
        load: Callable[[], Serving],
        commit: Callable[[Serving], object],
        done: Future[Serving],
    ) -> None:
        try:
            serving = load()
        except Exception as error:
            _fail(done, error)
        else:
            self._put_turn(lambda: self._flip(serving, commit), done, last=False)

    def _put_turn(self, act: Callable[[], Serving], done: Future[Serving], *, last: bool) -> None:
        def turn() -> None:
            try:
                self._stop_if_draining()
                serving = act()
            except Exception as error:
                _fail(done, error)
            else:
                with suppress(InvalidStateError):
                    done.set_result(serving)

        try:
            self._queue.put_turn(Turn(turn), last=last)
        except Draining as error:
            _fail(done, error)

    def _flip(self, serving: Serving, commit: Callable[[Serving], object]) -> Serving:
        canary.require_answer(serving, self._masking, self._stop_if_abandoned)
        commit(serving)
        self._take_over(serving)
        return serving

    def _replace(
        self,
        load: Callable[[], Serving],
        commit: Callable[[Serving], object],
        restore: Callable[[], Serving],
    ) -> Serving:
        for known in list(self._known):
            known.release()
        serving: Serving | None = None
        try:
            serving = load()
            return self._flip(serving, commit)
        except Exception:
            if serving is not None:
                serving.release()
            if not self._abandoned.is_set():
                self._put_back(restore)
            raise

    def _put_back(self, restore: Callable[[], Serving]) -> None:
        try:
            self._take_over(restore())
        except Exception:
            _log.critical("The old model could not be loaded again.", exc_info=True)
            self._state = "failed"
            self._serving = None
            self._queue.close()

    def _stop_if_draining(self) -> None:
        if self._state == "draining":
            raise Draining(retry_after=1)

    def _stop_if_abandoned(self) -> None:
        if self._abandoned.is_set():
            raise Draining(retry_after=1)

    def _answer(self, ticket: Ticket) -> None:
        deadline = time.monotonic() + self._deadline

        def check() -> None:
            self._stop_if_abandoned()
            if ticket.cancelled.is_set():
                raise ClientDisconnected
            if time.monotonic() > deadline:
                raise DeadlineExceeded

        try:
            check()
            if ticket.serving.released:
                ticket.move(self.serving())
            job = ticket.job
            result = answer_inputs(
                ticket.serving.mdlm,
                job.inputs,
                generation=job.generation,
                masking=job.masking,
                check=check,
            )
        except Exception as error:
            self._end(ticket, self._judge(error, ticket.job))
        else:
            self._count("completed")
            self._queue.done(ticket, completed=True)
            ticket.succeed(result)

    def _end(self, ticket: Ticket, error: ServerError) -> None:
        self._count("cancelled" if isinstance(error, ClientDisconnected) else "failed")
        self._queue.done(ticket, completed=False)
        ticket.fail(error)

    def _judge(self, error: Exception, job: Job) -> ServerError:
        """What the client is told; what it is not told goes into the log."""
        if isinstance(error, ServerError):
            return error
        if isinstance(error, SettingError | PromptError):
            return InvalidSetting(error.message, param=error.param)
        _log.error("Request %s failed in the engine.", job.request_id, exc_info=error)
        return GenerationFailed()


def _fail(done: Future[Serving], error: Exception) -> None:
    with suppress(InvalidStateError):
        done.set_exception(error)
