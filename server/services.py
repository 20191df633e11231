"""What the routes work with besides the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Services:
    """The parts of the service that keep something; None where a server goes without.

    Attributes:
        files: Uploaded data sets, `server.store.files.FileStore`.
        datasets: Data sets of this machine by name, `server.store.datasets.DataSets`.
        jobs: Purification jobs, `server.jobs.service.JobService`.
        checkpoints: Staged and served checkpoints, `server.store.checkpoints.CheckpointStore`.
        audit: Who did what, `server.store.audit.AuditLog`.
    """

    files: Any = None
    datasets: Any = None
    jobs: Any = None
    checkpoints: Any = None
    audit: Any = None
