"""What the routes work with besides the engine."""

from __future__ import annotations

from dataclasses import dataclass

from server.data_sets import DataSets
from server.deployer import Deployer
from server.jobs.child import WorkerChild
from server.jobs.service import JobService
from server.store.audit import AuditLog
from server.store.checkpoints import CheckpointStore
from server.store.files import FileStore


@dataclass(frozen=True)
class Services:
    """The parts of the service that keep something; None where a server goes without.

    Attributes:
        files: Uploaded data sets.
        datasets: Data sets by id, uploads and others.
        jobs: Purification jobs.
        checkpoints: Staged and served checkpoints.
        deployer: Puts checkpoints into the engine.
        audit: Who did what.
        worker: The worker beside this server.
    """

    files: FileStore | None = None
    datasets: DataSets | None = None
    jobs: JobService | None = None
    checkpoints: CheckpointStore | None = None
    deployer: Deployer | None = None
    audit: AuditLog | None = None
    worker: WorkerChild | None = None
