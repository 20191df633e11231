"""A checkpoint that a job made elsewhere, copied from the shared store."""

from __future__ import annotations

import logging
import shutil
import uuid
from pathlib import Path

from purifier.errors import CheckpointError
from server.errors import CheckpointDamaged
from server.store.blobs import BlobDamaged, BlobStore
from server.store.checkpoint_files import read_content, take_in
from server.store.checkpoint_tables import CheckpointRecord

_log = logging.getLogger("disp.checkpoints")


def tuned_folder(job_id: str) -> str:
    """Where the shared store has the checkpoint that a job made."""
    return f"jobs/{job_id}/tuned"


def fetch(store: BlobStore, record: CheckpointRecord, folder: Path, beside: Path | None) -> None:
    """Copies a checkpoint from the shared store to its place on this machine.

    Args:
        store: What all workers share.
        record: A checkpoint that a job made.
        folder: Where staged checkpoints lie on this machine.
        beside: A delta's base on this machine.

    Raises:
        CheckpointDamaged: If the shared store does not have it as it was staged, or it does not
            fit its base.
    """
    try:
        _copy(store, record, folder, beside)
    except (CheckpointError, BlobDamaged, FileNotFoundError) as error:
        _log.warning("%s could not be brought from the shared store: %s", record.id, error)
        raise CheckpointDamaged(
            f"{record.id} is not on this machine, and not whole in the shared store."
        ) from None


def _copy(store: BlobStore, record: CheckpointRecord, folder: Path, beside: Path | None) -> None:
    source = store.local_folder(tuned_folder(str(record.job_id)))
    # The manifest of the shared store is no part of the checkpoint.
    incoming = folder / f".incoming-{uuid.uuid4().hex}"
    try:
        for name in record.files:
            target = incoming / record.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target)
        content = read_content(incoming / record.name)
        if content.id != record.id or content.sha256 != record.sha256:
            raise CheckpointError(f"{record.id} is not what the shared store has.")
        take_in(incoming / record.name, content, folder, beside)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
