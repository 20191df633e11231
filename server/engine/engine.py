"""The thread that owns the model."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Literal

from purifier.defense.config import MaskingConfig
from purifier.errors import PurifierError
from server.engine import canary
from server.engine.batch import Batch
from server.engine.counters import Counting, EngineCounters
from server.engine.fairness import Alternation
from server.engine.job import Job, Progress, Serving, Ticket
from server.engine.newcomers import Newcomers
from server.engine.outcomes import Observer, Outcomes
from server.engine.pace import Load, Pace, Room
from server.engine.queue import AdmissionQueue, Place, Turn
from server.engine.shared import SharedDefences
from server.engine.swap import COMMIT_SECONDS, Swaps
from server.errors import ClientDisconnected, Draining, NotReady, QueueFull

_log = logging.getLogger("disp.engine")

EngineState = Literal["loading", "ready", "failed", "draining", "stopped"]

DEFAULT_ROOM = Room(requests=8, positions=32_768)
_LAST_STEP_SECONDS = 10.0


def _nothing(serving: Serving) -> None:
    pass


class Engine:
    """Loads a model, proves that it answers, and answers jobs until it is closed.

    Jobs are denoised together, in steps that they join and leave. `swap` puts another model
    in the place of this one between two steps.

    Args:
        load: Loads the model; called on the engine thread.
        queue_size: Jobs that may wait.
        deadline: Seconds from a job's admission to its end at the latest.
        masking: The defence that the warm-up answer runs through.
        room: Jobs that are denoised together.
        shared_bytes: Bytes of defences that are kept for identical requests; 0 keeps none.
        passes_per_step: Passes of newcomers between two steps of what runs.
        commit_patience: Seconds for which the commit of a swap is tried again.
    """

    def __init__(
        self,
        load: Callable[[], Serving],
        *,
        queue_size: int,
        deadline: float,
        masking: MaskingConfig | None = None,
        room: Room = DEFAULT_ROOM,
        shared_bytes: int = 0,
        passes_per_step: int = 1,
        commit_patience: float = COMMIT_SECONDS,
    ) -> None:
        self._load = load
        self._deadline = deadline
        self._masking = masking
        self._room = room
        self._counting = Counting()
        self._pace = Pace()
        self._queue = AdmissionQueue(queue_size, self._seconds_to_room)
        self._outcomes = Outcomes(self._queue, self._counting)
        self._batch = Batch(room, self._check, self._outcomes, self._counting, self._pace)
        self._turns = Alternation(self._step, passes_per_step)
        self._shared = SharedDefences(shared_bytes)
        self._newcomers = Newcomers(self._shared, self._turns, self._counting)
        self._beginning: Ticket | None = None
        self._swaps = Swaps(self._queue, self, commit_patience)
        self._state: EngineState = "loading"
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.ready: Future[Serving] = Future()
        """Ends when the model has answered for the first time, or could not be loaded."""
        self.ready.set_running_or_notify_cancel()

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def closing(self) -> bool:
        """Whether its server stops, whatever state it is in."""
        return self._closing.is_set()

    @property
    def counters(self) -> EngineCounters:
        return self._counting.read()

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return self._queue.waiting

    @property
    def running(self) -> int:
        """Jobs being answered."""
        return self._queue.running

    @property
    def steps_per_second(self) -> float:
        """Denoising steps of what runs in a second, as measured."""
        return self._pace.steps_per_second

    def watch(self, observer: Observer) -> None:
        """Lets somebody hear of every answer from now on."""
        self._outcomes.observers += (observer,)

    def start(self) -> None:
        """Begins to load."""
        self._thread.start()

    def serving(self) -> Serving:
        """The model that answers now.

        Raises:
            NotReady: If there is none yet.
        """
        if self._swaps.serving is None:
            raise NotReady(retry_after=5)
        return self._swaps.serving

    def reserve(self) -> Place:
        """Takes a place in the queue, to be used or given back as a context.

        Raises:
            NotReady, QueueFull, Draining: If there is none.
        """
        now = self.serving()
        try:
            self._queue.reserve()
        except QueueFull:
            self._counting.add("refused")
            raise
        return Place(
            self._queue, lambda job, progress, serving: self._admit(job, serving or now, progress)
        )

    def swap(
        self,
        load: Callable[[], Serving],
        *,
        commit: Callable[[Serving], object] = _nothing,
        restore: Callable[[], Serving] | None = None,
    ) -> Future[Serving]:
        """Puts another model in the place of the one that answers.

        The new one answers a first question before anything changes. Between two denoising
        steps `commit` is called and the new one takes over: every job admitted from then on is
        its own, and those admitted before are still answered by the old one.

        With `restore` the two do not fit into the memory together: the old one answers what
        runs and waits, its weights are dropped, and only then `load` is called, while new jobs
        wait.

        Args:
            load: Loads the new model; called on a thread of its own, or with `restore` on the
                engine's.
            commit: Makes the change known; called on the engine thread. If it raises, nothing
                has changed. After `CommitLater` it is called again for `commit_patience`, between
                whose tries the engine goes on with the old model, or with `restore` waits.
            restore: Loads the old model again, should the new one fail after the old one's
                weights were dropped.

        Returns:
            Ends in the new model, or in the error for which everything stays as it was.
        """
        return self._swaps.begin(load, commit, restore)

    def cancel(self, ticket: Ticket) -> None:
        """Takes a job out of the queue, or out of the batch before its next denoising step.

        Nobody waits for it any more: its client has gone, or its deadline has passed.
        """
        ticket.cancelled.set()
        if self._queue.discard(ticket):
            late = ticket.seconds_left < 0
            self._outcomes.refused(ticket, ticket.overdue if late else ClientDisconnected())

    def close(self, timeout: float | None = None) -> bool:
        """Takes no more jobs, answers those inside, and ends the thread.

        Args:
            timeout: Seconds after which what is left ends in `Draining`.

        Returns:
            Whether every job inside was answered.
        """
        self._closing.set()
        if self._state in ("loading", "ready"):
            self._state = "draining"
        self._queue.close()
        if self._swaps.serving is not None:
            self._thread.join(timeout)
        answered = not self._thread.is_alive()
        self.abandon()
        if self._swaps.serving is not None:
            self._thread.join(_LAST_STEP_SECONDS)
        return answered

    def abandon(self) -> None:
        """Ends every job inside now; the model stops before its next pass."""
        self._closing.set()
        self._queue.close()
        self._abandoned.set()
        for ticket in self._queue.inside():
            ticket.fail(Draining(retry_after=1))
        self._swaps.abandon(Draining(retry_after=1))

    @property
    def abandoned(self) -> bool:
        """Whether every job inside is to end now."""
        return self._abandoned.is_set()

    def prove(self, serving: Serving) -> None:
        """Lets a new model answer a first question, while the running batch goes on.

        Raises:
            CanaryFailed: If it does not answer.
            Draining: If the engine is abandoned meanwhile.
        """

        def between() -> None:
            self._stop_if_abandoned()
            self._turns.passed()

        canary.require_answer(serving, self._masking, between)

    def changed(self) -> None:
        """Forgets what was kept for the model before."""
        self._shared.clear()

    def lost(self) -> None:
        """Takes no more jobs: no model is left."""
        self._state = "failed"
        self._queue.close()

    def require_open(self) -> None:
        """Checks that the engine does not close.

        Raises:
            Draining: If it does.
        """
        if self._state == "draining":
            raise Draining(retry_after=1)

    def _admit(self, job: Job, serving: Serving, progress: Progress | None) -> Ticket:
        ticket = Ticket(job, serving, progress=progress)
        ticket.deadline = ticket.submitted + self._deadline
        self._queue.put(ticket)
        self._counting.add("admitted")
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
        self._swaps.take_over(serving)
        if self._state == "loading":
            self._state = "ready"
        self.ready.set_result(serving)
        try:
            self._serve()
        except Exception:
            _log.critical("The engine's thread has failed; restart the server.", exc_info=True)
            self._fall()
        if self._state != "failed":
            self._state = "stopped"

    def _warm_up(self, serving: Serving) -> None:
        """Answers one question, defended; the first measurement of the pace."""
        answer, seconds = canary.ask(serving, self._masking, self._stop_if_abandoned)
        denoising = answer.timings["denoise"]
        self._pace.learn(seconds - denoising, denoising / max(answer.steps, 1))

    def _serve(self) -> None:
        """Takes up what waits and steps what runs, until the queue is closed and both are empty."""
        while self._go_on():
            pass

    def _fall(self) -> None:
        """Ends everything inside: nobody will make another step."""
        self._swaps.serving = None
        self.lost()
        failed = NotReady("The server has failed and must be started again.", retry_after=60)
        for ticket in self._queue.clear():
            self._outcomes.refused(ticket, failed)
        self._swaps.abandon(failed)

    def _go_on(self) -> bool:
        """Does what comes next, and keeps nothing of it; False if there is nothing left."""
        idle = len(self._batch) == 0
        item = self._queue.take(self._batch.fits, wait=idle)
        if isinstance(item, Ticket):
            self._begin(item)
        elif isinstance(item, Turn):
            item.act()
        elif not idle:
            self._turns.step()
        return item is not None or not idle

    def _begin(self, ticket: Ticket) -> None:
        """Takes a request up until it runs, or has to end."""
        self._beginning = ticket
        self._pace.begins()
        try:
            self._check(ticket)
            if ticket.serving.released:
                ticket.move(self.serving())
            begun = self._newcomers.begin(ticket, lambda: self._check(ticket))
            self._batch.join(ticket, begun)
        except Exception as error:
            self._pace.gives_up()
            self._outcomes.failed(ticket, error)
        finally:
            self._beginning = None
        self._turns.passed()

    def _step(self) -> None:
        """Moves the running batch on; ends what has waited too long."""
        for ticket in self._queue.expired(time.monotonic()):
            self._outcomes.refused(ticket, ticket.overdue)
        self._batch.step()

    def _check(self, ticket: Ticket) -> None:
        """Raises if a request has to end."""
        self._stop_if_abandoned()
        if ticket.seconds_left < 0:
            raise ticket.overdue
        if ticket.cancelled.is_set():
            raise ClientDisconnected

    def _stop_if_abandoned(self) -> None:
        if self.abandoned:
            raise Draining(retry_after=1)

    def _seconds_to_room(self) -> float:
        """Seconds until the request that has waited longest should be taken up."""
        loads = self._batch.loads
        if (newcomer := self._beginning) is not None:
            generation = newcomer.job.generation
            steps = self._pace.steps_left(0, generation.n_steps)
            loads = (*loads, Load(newcomer.job.positions, steps))
        waiting = self._queue.next_ticket
        positions = 0 if waiting is None else waiting.job.positions
        return self._pace.seconds_until(self._room.steps_until(positions, loads))
