"""Which checkpoints may be deleted, and what goes with them."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from sqlalchemy import Connection, or_, select

from server.errors import CheckpointConflict
from server.store.checkpoint_tables import checkpoints, slots
from server.store.database import clock
from server.store.deployments import ALIVE_SECONDS, requests, servers
from server.store.job_tables import jobs
from server.store.jobs import FINISHED

_STALE_SECONDS = 86_400


def refuse_if_needed(connection: Connection, checkpoint: str) -> None:
    """Refuses to delete what something still needs.

    Raises:
        CheckpointConflict: If it serves, would serve after a rollback, or a server was started
            with it; if other checkpoints stand on it; if one that may still go live was made
            from it, for its ancestors tell where it belongs; or if an unfinished job needs it.
    """
    # The pointers stay where they are until this transaction ends.
    for slot in connection.execute(select(slots).with_for_update()).all():
        if checkpoint in (slot.active, slot.previous, slot.deployment):
            raise CheckpointConflict(
                f"{checkpoint} serves, served last, or is what a server was started with; activate "
                "another one first."
            )
    busy = select(servers.c.id).where(
        servers.c.checkpoint == checkpoint, servers.c.seen_at > clock(connection) - ALIVE_SECONDS
    )
    asked = select(requests.c.id).where(
        requests.c.checkpoint == checkpoint, requests.c.state.in_(("requested", "running"))
    )
    if connection.execute(busy).first() or connection.execute(asked).first():
        raise CheckpointConflict(f"A server is about to serve {checkpoint}, or still does.")
    related = connection.execute(
        select(checkpoints).where(
            or_(checkpoints.c.base == checkpoint, checkpoints.c.parent == checkpoint)
        )
    ).all()
    for other in related:
        if other.base == checkpoint:
            raise CheckpointConflict(f"{other.id} stands on {checkpoint}; delete it first.")
        if other.state in ("staged", "verified"):
            raise CheckpointConflict(
                f"{other.id} was made from {checkpoint} and may still serve; delete it first."
            )
    unfinished = select(jobs.c.id, jobs.c.spec, jobs.c.result)
    for job in connection.execute(unfinished.where(jobs.c.status.not_in(FINISHED))):
        if checkpoint in (json.loads(job.spec)["model"], job.result):
            raise CheckpointConflict(f"The job {job.id} needs {checkpoint}; cancel it first.")


def remove_files(folder: Path, path: Path) -> None:
    """Removes a checkpoint's files; one that lies outside the store's folder stays there."""
    if path.is_relative_to(folder) and path.parent != folder:
        shutil.rmtree(path.parent, ignore_errors=True)


def sweep(folder: Path, known: set[str]) -> None:
    """Removes what was staged or deleted only by half, a day after.

    Args:
        folder: The store's.
        known: Folders in it that checkpoints lie in.
    """
    for shelf in folder.iterdir() if folder.is_dir() else ():
        if shelf.name not in known and shelf.lstat().st_mtime < time.time() - _STALE_SECONDS:
            shutil.rmtree(shelf, ignore_errors=True)
