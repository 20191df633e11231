"""The thread that owns the model."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from purifier.answer import answer_inputs, user_messages
from purifier.defense.config import MaskingConfig
from purifier.denoise.config import GenerationConfig
from purifier.errors import InvalidPrompt as PromptError
from purifier.errors import InvalidSetting as SettingError
from purifier.errors import PurifierError
from server.engine.job import Job, Serving, Ticket
from server.engine.queue import AdmissionQueue, Place
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

_WARM_UP = GenerationConfig(gen_length=8)
_WARM_UP_SIDE = 256
_LAST_STEP_SECONDS = 10.0


@dataclass(frozen=True)
class EngineCounters:
    """What has become of the jobs since the start."""

    admitted: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0


class Engine:
    """Loads a model, proves that it answers, and answers jobs until it is closed.

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

    def reserve(self) -> Place:
        """Takes a place in the queue, to be used or given back as a context.

        Raises:
            NotReady, QueueFull, Draining: If there is none.
        """
        serving = self.serving()
        self._queue.reserve()
        return Place(self._queue, lambda job: self._admit(job, serving))

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
        self._serving = serving
        if self._state == "loading":
            self._state = "ready"
        self.ready.set_result(serving)
        while (ticket := self._queue.take()) is not None:
            self._answer(ticket)
        self._state = "stopped"

    def _warm_up(self, serving: Serving) -> None:
        """Answers one question, defended; the first measurement of the service time."""
        image = Image.linear_gradient("L").resize((_WARM_UP_SIDE, _WARM_UP_SIDE)).convert("RGB")
        inputs = serving.prepare(user_messages(image, "What is this?"))
        start = time.monotonic()
        answer_inputs(
            serving.mdlm,
            inputs,
            generation=_WARM_UP,
            masking=self._masking,
            check=self._stop_if_abandoned,
        )
        self._queue.times.record(_WARM_UP.n_steps, time.monotonic() - start)

    def _stop_if_abandoned(self) -> None:
        if self._abandoned.is_set():
            raise Draining(retry_after=1)

    def _answer(self, ticket: Ticket) -> None:
        job = ticket.job
        deadline = time.monotonic() + self._deadline

        def check() -> None:
            self._stop_if_abandoned()
            if ticket.cancelled.is_set():
                raise ClientDisconnected
            if time.monotonic() > deadline:
                raise DeadlineExceeded

        try:
            check()
            result = answer_inputs(
                ticket.serving.mdlm,
                job.inputs,
                generation=job.generation,
                masking=job.masking,
                check=check,
            )
        except Exception as error:
            self._end(ticket, self._judge(error, job))
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
