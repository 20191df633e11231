"""The last stage: the servers are asked to serve the new checkpoint, and waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from server.jobs.interrupt import JobStopped, WorkerStopping
from server.store.attempts import Attempt, AttemptOver, Attempts
from server.store.checkpoints import CheckpointStore
from server.store.database import Database
from server.store.deployments import DeploymentRequest, Deployments
from server.store.events import EventLog

Check = Callable[[], None]

_POLL_SECONDS = 0.25
_STRANDED_SECONDS = 60.0
"""How long a request is waited for whose server is gone while no other one lives."""
_GONE = (
    "The server that was to activate the checkpoint is gone; its log may say why. Nothing was "
    "activated."
)


class ActivationFailed(Exception):
    """A server refused the checkpoint, or is gone; the message, safe to show, says why."""


class Activation:
    """Activates checkpoints for jobs.

    Args:
        database: The service's database.
        folder: Where staged checkpoints lie.
        attempts: What workers write about jobs.
    """

    def __init__(
        self,
        database: Database,
        folder: Path,
        attempts: Attempts,
    ) -> None:
        self._database = database
        self._deployments = Deployments(database)
        self._events = EventLog(database)
        self._folder = folder
        self._attempts = attempts

    def __call__(self, attempt: Attempt, checkpoint: str, check: Check) -> str:
        """Activates a checkpoint; returns a sentence that says what happened.

        Raises:
            ActivationFailed: If a server tried and refused, or was not heard of again.
            JobStopped, WorkerStopping: From `check`; a request not yet taken is withdrawn.
            AttemptOver: If the job was stopped before it could say anything; the same.
        """
        store = self._deployment_of(checkpoint)
        active = store.active() if store is not None else None
        if active is not None and active.id == checkpoint:
            return f"{checkpoint} is active."
        request = self._deployments.request(checkpoint, requested_by=f"job {attempt.job_id}")
        if request is None:
            return self._directly(attempt, store, checkpoint)
        try:
            self._attempts.event(
                attempt,
                "The servers are asked to activate the checkpoint.",
                {"request": request.id},
            )
            served = self._served(request, check)
        except (JobStopped, WorkerStopping, AttemptOver):
            self._take_back(attempt, request.id)
            raise
        return f"{checkpoint} is active." if served else self._directly(attempt, store, checkpoint)

    def _served(self, request: DeploymentRequest, check: Check) -> bool:
        """Waits until a server has done what was asked; False if there is none to do it.

        A checkpoint that a server was trying when it was last heard of is never activated without
        one: it may be the reason.
        """
        stranded = 0.0
        while True:
            found = self._deployments.get(request.id)
            if found is None or found.state == "failed":
                reason = found.reason if found is not None else None
                raise ActivationFailed(reason or "The servers could not activate the checkpoint.")
            if found.state == "done":
                return True
            if found.state == "withdrawn":
                return False
            if self._deployments.alive(found.deployment):
                stranded = 0.0
            elif self._deployments.withdraw(request.id):
                return False
            else:
                stranded += _POLL_SECONDS
                if stranded > _STRANDED_SECONDS:
                    self._deployments.give_up(request.id, _GONE)
            check()
            time.sleep(_POLL_SECONDS)

    def _take_back(self, attempt: Attempt, request: str) -> None:
        """Asks no longer; says so if that comes too late."""
        if self._deployments.withdraw(request):
            return
        found = self._deployments.get(request)
        if found is not None and found.state in ("running", "done"):
            self._events.append(
                attempt.job_id,
                "The job was stopped too late: a server had taken up the activation, and brings it "
                "to its end.",
                level="warn",
                data={"request": request},
            )

    def _directly(self, attempt: Attempt, store: CheckpointStore | None, checkpoint: str) -> str:
        if store is None:
            return (
                f"No server serves this model or an ancestor of it: {checkpoint} is staged, and "
                "nothing was activated."
            )
        store.activate(checkpoint, actor=f"job {attempt.job_id}")
        return (
            f"No server runs: {checkpoint} is noted as active, and the next server that starts "
            "with this model serves it."
        )

    def _deployment_of(self, checkpoint: str) -> CheckpointStore | None:
        """The deployment that was started with the nearest ancestor."""
        seen: set[str] = set()
        ancestor: str | None = checkpoint
        while ancestor is not None and ancestor not in seen:
            seen.add(ancestor)
            store = CheckpointStore(self._database, self._folder, ancestor)
            if store.active() is not None:
                return store
            ancestor = store.get(ancestor).parent
        return None
