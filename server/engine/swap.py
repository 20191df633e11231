"""The model that answers, and how another one takes its place."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Protocol

from server.engine.frames import free_frames
from server.engine.job import Serving
from server.engine.queue import AdmissionQueue, Turn
from server.errors import Draining, ServerError

_log = logging.getLogger("disp.engine")


COMMIT_SECONDS = 30.0
"""For so long a commit that cannot be made now is tried again."""
_COMMIT_PAUSE = 0.25


class CommitLater(Exception):
    """A commit cannot be made now, and has changed nothing; it may succeed a moment later."""


class Host(Protocol):
    """What a swap needs of the engine around it; called on the engine's thread."""

    def prove(self, serving: Serving) -> None:
        """Lets a new model answer a first question; raises if it does not."""

    def changed(self) -> None:
        """Another model answers from now on, or the old one again."""

    def lost(self) -> None:
        """No model is left that could answer."""

    def require_open(self) -> None:
        """Raises `Draining` if the engine closes."""

    @property
    def abandoned(self) -> bool:
        """Whether everything inside is to end now."""


class Swaps:
    """Holds the model that answers; puts others in its place between two denoising steps.

    Args:
        queue: Where a swap waits for its turn.
        host: The engine.
        patience: Seconds for which a commit is tried again after `CommitLater`.
    """

    def __init__(self, queue: AdmissionQueue, host: Host, patience: float = COMMIT_SECONDS) -> None:
        self._queue = queue
        self._host = host
        self._patience = patience
        self._known: weakref.WeakSet[Serving] = weakref.WeakSet()
        self._pending: set[Future[Serving]] = set()
        self.serving: Serving | None = None
        """The model that answers now."""

    def take_over(self, serving: Serving) -> None:
        """Lets a model answer; for the engine's thread alone."""
        self._known.add(serving)
        self.serving = serving
        self._host.changed()

    def begin(
        self,
        load: Callable[[], Serving],
        commit: Callable[[Serving], object],
        restore: Callable[[], Serving] | None,
    ) -> Future[Serving]:
        """Begins a swap; see `Engine.swap`."""
        done: Future[Serving] = Future()
        done.set_running_or_notify_cancel()
        self._pending.add(done)
        done.add_done_callback(self._pending.discard)
        if restore is None:
            aside = threading.Thread(
                target=self._load_aside, args=(load, commit, done), name="swap", daemon=True
            )
            aside.start()
        else:
            self._put_turn(lambda: self._replace(load, commit, restore), done, alone=True)
        return done

    def abandon(self, error: ServerError) -> None:
        """Ends every swap that has not ended."""
        for done in list(self._pending):
            _fail(done, error)

    def _load_aside(
        self,
        load: Callable[[], Serving],
        commit: Callable[[Serving], object],
        done: Future[Serving],
    ) -> None:
        """Loads beside the old model, which answers until the commit is made."""
        # Held here alone: a function of an error's traceback keeps what it has names for, and the
        # error is kept by `done`. So a model that does not serve is out of memory at once.
        loaded: list[Serving] = []
        try:
            loaded.append(load())
        except Exception as error:
            free_frames(error)
            _fail(done, error)
            return
        done.add_done_callback(lambda _: loaded.clear())
        proved = False

        def flip() -> Serving:
            nonlocal proved
            try:
                [serving] = loaded
            except ValueError:  # the swap was abandoned
                raise Draining(retry_after=1) from None
            if not proved:
                self._host.prove(serving)
                proved = True
            commit(serving)
            self.take_over(serving)
            return serving

        self._put_turn(flip, done, deadline=time.monotonic() + self._patience)

    def _put_turn(
        self,
        act: Callable[[], Serving],
        done: Future[Serving],
        *,
        alone: bool = False,
        deadline: float = 0.0,
    ) -> None:
        """Lets the engine act before all that waits, or with `alone` behind it and undisturbed.

        Until the deadline it acts again after a pause in which it goes on with its work, if the
        commit cannot be made yet.
        """

        def again() -> None:
            self._put_turn(act, done, alone=alone, deadline=deadline)

        def turn() -> None:
            try:
                self._host.require_open()
                serving = act()
            except CommitLater as error:
                free_frames(error)
                if done.done() or time.monotonic() >= deadline:
                    _fail(done, error)
                    return
                timer = threading.Timer(_COMMIT_PAUSE, again)
                timer.daemon = True
                timer.start()
            except Exception as error:
                free_frames(error)
                _fail(done, error)
            else:
                with suppress(InvalidStateError):
                    done.set_result(serving)

        try:
            self._queue.put_turn(Turn(turn, alone), last=alone)
        except Draining as error:
            _fail(done, error)

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
            self._host.prove(serving)
            self._commit(serving, commit)
            self.take_over(serving)
            return serving
        except Exception as error:
            if serving is not None:
                serving.release()
            # What was loaded of the new model, or the old one would not fit.
            free_frames(error)
            if not self._host.abandoned:
                self._put_back(restore)
            raise

    def _commit(self, serving: Serving, commit: Callable[[Serving], object]) -> None:
        """Commits where no other model could answer meanwhile."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                commit(serving)
                return
            except CommitLater:
                if self._host.abandoned or time.monotonic() > deadline:
                    raise
            time.sleep(_COMMIT_PAUSE)

    def _put_back(self, restore: Callable[[], Serving]) -> None:
        try:
            self.take_over(restore())
        except Exception:
            _log.critical("The old model could not be loaded again.", exc_info=True)
            self.serving = None
            self._host.lost()


def _fail(done: Future[Serving], error: Exception) -> None:
    with suppress(InvalidStateError):
        done.set_exception(error)
