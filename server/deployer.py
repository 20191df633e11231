"""Activates checkpoints: checks the files, loads, lets the engine swap, moves the pointer.

The pointer in the database moves on the engine's thread, after the new model has answered
its first question and before it answers anybody else's: what the database calls active is
what serves, whenever the process is killed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from purifier.errors import PurifierError
from server.engine import CommitLater, Engine, Serving
from server.engine.slot import ModelSlot, Weights
from server.errors import (
    CanaryFailed,
    CheckpointConflict,
    CheckpointDamaged,
    DatabaseUnavailable,
    NotReady,
    ServerError,
)
from server.store.audit import Actor
from server.store.checkpoint_tables import CheckpointRecord
from server.store.checkpoints import CheckpointStore

_log = logging.getLogger("disp.deployer")

COMMIT_WAIT = 0.1
"""Seconds that the engine's thread waits for a lock of the database; then it goes on answering."""
_RETRY_AFTER = 5


class SwapObserver(Protocol):
    """Hears how swaps end."""

    def swapped(self, seconds: float) -> None:
        """A checkpoint serves, so many seconds after it was asked for."""

    def not_swapped(self) -> None:
        """A checkpoint was refused or could not be loaded."""


class Deployer:
    """Puts checkpoints of the store into the engine; one at a time.

    Args:
        store: The checkpoints.
        slot: Loads them.
        origin: Folder of the model that the server was started with.
    """

    def __init__(self, store: CheckpointStore, slot: ModelSlot, origin: Path) -> None:
        self.store = store
        self._slot = slot
        self._origin = origin
        self._engine: Engine | None = None
        self._one_at_a_time = threading.Lock()
        self._observers: tuple[SwapObserver, ...] = ()

    def attach(self, engine: Engine) -> None:
        """Says which engine is swapped."""
        self._engine = engine

    def watch(self, observer: SwapObserver) -> None:
        """Lets somebody hear of every swap from now on."""
        self._observers += (observer,)

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise NotReady(retry_after=5)
        return self._engine

    def first(self) -> Serving:
        """Loads what the deployment served last; at its first start the model it is started with.

        Raises:
            PurifierError, ServerError: If that is damaged or refused. Nothing else is served
                in its place.
        """
        origin = self.store.register(self._origin)
        record = self.store.open_deployment(origin.id)
        fresh = {origin.id, origin.base}
        if record.id not in fresh:
            _log.info("%s serves %s, which was activated last.", origin.id, record.id)
            self.store.verify(record.id)
        if record.base is not None and record.base not in fresh:
            self.store.verify(record.base)
        serving = self._slot.load(self._weights(record))
        self._slot.keep()
        return serving

    def activate(self, checkpoint: str, *, actor: Actor, forced: bool = False) -> CheckpointRecord:
        """Serves a checkpoint from the next answer on; waits until it does.

        Raises:
            CheckpointNotFound: If there is none of this id.
            GateFailed: If its evaluation failed and `forced` is not set.
            CheckpointDamaged, CanaryFailed, CheckpointConflict: If it cannot serve; the old one
                serves on, unless the message says that it could not be loaded again.
            DatabaseUnavailable: If the database is locked or away for too long; the same.
            NotReady, Draining: If nothing serves.
        """
        with self._one_at_a_time:
            record = self.store.check(checkpoint, forced=forced)
            if record.id == self.engine.serving().checkpoint and record.state == "active":
                return record
            self._swap(
                record,
                lambda: self.store.activate(
                    record.id, actor=actor, forced=forced, wait=COMMIT_WAIT
                ),
            )
            return self.store.get(record.id)

    def rollback(self, *, actor: Actor) -> CheckpointRecord:
        """Serves the previous checkpoint again; waits until it does.

        Raises:
            CheckpointConflict: If there is no previous one.
            CheckpointDamaged, CanaryFailed: If it cannot serve; as for `activate`.
            DatabaseUnavailable: If the database is locked or away for too long; the same.
            NotReady, Draining: If nothing serves.
        """
        with self._one_at_a_time:
            record = self.store.check_rollback()
            self._swap(
                record, lambda: self.store.rollback(actor, expected=record.id, wait=COMMIT_WAIT)
            )
            return self.store.get(record.id)

    def is_behind(self) -> bool:
        """Whether another server of the deployment has activated something."""
        active = self.store.active()
        return active is not None and active.id != self.engine.serving().checkpoint

    def follow(self) -> None:
        """Serves what the deployment calls active.

        Raises:
            As `activate`.
        """
        with self._one_at_a_time:
            active = self.store.active()
            if active is not None and active.id != self.engine.serving().checkpoint:
                self._swap(active, lambda: None)

    def _swap(self, record: CheckpointRecord, commit: Callable[[], object]) -> None:
        start = time.monotonic()
        try:
            self._put_in_place(record, commit)
        except Exception:
            for observer in self._observers:
                observer.not_swapped()
            raise
        for observer in self._observers:
            observer.swapped(time.monotonic() - start)

    def _put_in_place(self, record: CheckpointRecord, commit: Callable[[], object]) -> None:
        engine = self.engine
        old = engine.serving().checkpoint
        self.store.verify(record.id)
        weights = self._weights(record)
        try:
            plan = self._slot.plan(weights)
            _log.info("%s takes the place of %s: %s.", record.id, old, plan)
            if plan.reads_base and record.base is not None:
                self.store.verify(record.base)
            restore = self._restore(old) if plan.way == "in_place" else None
            # No name for it: it would hold its error, whose traceback would hold it.
            engine.swap(
                lambda: self._slot.load(weights, plan),
                commit=lambda _: _now_or_later(commit),
                restore=restore,
            ).result()
        except Exception as error:
            self._slot.drop()
            explained = self._explained(error, record.id, old)
            if explained is error:
                raise
            raise explained from error
        self._slot.keep()

    def _explained(self, error: Exception, new: str, old: str) -> ServerError:
        """Why a checkpoint does not serve, and what serves instead."""
        now = f"{old} still serves."
        if lost := self._is_lost():
            now = f"{old} could not be loaded again: the server answers nothing until a restart."
        if isinstance(error, CommitLater):
            return DatabaseUnavailable(
                f"The database was locked or away for too long. {now}", retry_after=_RETRY_AFTER
            )
        if isinstance(error, ServerError):
            if isinstance(error, CanaryFailed) or (lost and not isinstance(error, NotReady)):
                return type(error)(
                    f"{error.message} {now}", param=error.param, retry_after=error.retry_after
                )
            return error
        if isinstance(error, PurifierError):
            return CheckpointDamaged(f"{error.message} {now}")
        _log.error("%s could not take the place of %s.", new, old, exc_info=error)
        return CheckpointConflict(f"{new} could not be loaded; the server's log says why. {now}")

    def _is_lost(self) -> bool:
        """Whether a swap has left no model that could answer."""
        try:
            self.engine.serving()
        except NotReady:
            return True
        return False

    def _restore(self, checkpoint: str) -> Callable[[], Serving]:
        """A way back to a checkpoint, whose files are checked before its weights are dropped."""
        record = self.store.verify(checkpoint)
        if record.base is not None:
            self.store.verify(record.base)
        weights = self._weights(record)

        def restore() -> Serving:
            serving = self._slot.load(weights)
            self._slot.keep()
            _log.warning("%s serves again.", checkpoint)
            return serving

        return restore

    def _weights(self, record: CheckpointRecord) -> Weights:
        base = None if record.base is None else self.store.get(record.base)
        return Weights(
            checkpoint=record.id,
            path=record.path,
            sha256=record.sha256,
            parent=record.parent,
            base=None if base is None else Weights(base.id, base.path, base.sha256),
        )


def _now_or_later(commit: Callable[[], object]) -> None:
    try:
        commit()
    except DatabaseUnavailable as error:
        raise CommitLater from error
