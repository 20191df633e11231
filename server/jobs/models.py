"""The model that a worker relabels with: loaded once, given back before others need its memory."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import torch

from purifier.mdlm.base import Mdlm
from purifier.mdlm.registry import load_mdlm
from purifier.purification.purifier import Purifier
from server.jobs import detecting
from server.jobs.job import Job
from server.jobs.memory import require_memory
from server.jobs.relabelling import Rows
from server.store.blobs import BlobStore


class JobModels:
    """What relabelling one job needs, kept from shard to shard.

    Args:
        device: Where models run.
        dtype: What they are loaded in.
    """

    def __init__(self, device: str, dtype: str) -> None:
        self._device = device
        self._dtype = dtype
        self._lock = threading.Lock()
        self._mdlm: tuple[Path, Mdlm] | None = None
        self._purifier: tuple[str, Purifier] | None = None
        self._rows: tuple[str, Rows] | None = None

    def purifier(self, job: Job, store: BlobStore) -> Purifier:
        """The job's purifier; loads its model if another one was loaded.

        Args:
            job: The job.
            store: Has the detector, where the job has made one.

        Raises:
            MemoryShort: If the device cannot hold the model.
            CheckpointError: If the checkpoint is refused.
        """
        with self._lock:
            if self._purifier is None or self._purifier[0] != job.id:
                config = job.settings.purify
                mdlm = self._model(job.sources.model)
                mdlm.detector = detecting.detector(job, store, mdlm)
                images = self._open(job).dataset.images
                self._purifier = (job.id, Purifier(mdlm, config, images))
            return self._purifier[1]

    def model(self, job: Job) -> Mdlm:
        """The job's compromised model, as it is.

        Raises:
            MemoryShort: If the device cannot hold the model.
            CheckpointError: If the checkpoint is refused.
        """
        with self._lock:
            return self._model(job.sources.model)

    def rows(self, job: Job) -> Rows:
        """The job's data set."""
        with self._lock:
            return self._open(job)

    def release(self) -> None:
        """Gives the memory back."""
        with self._lock:
            self._mdlm = self._purifier = None
        gc.collect()
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _model(self, path: Path) -> Mdlm:
        if self._mdlm is None or self._mdlm[0] != path:
            self._mdlm = self._purifier = None
            require_memory(path, self._device, self._dtype)
            self._mdlm = (path, load_mdlm(path, device=self._device, dtype=self._dtype))
        return self._mdlm[1]

    def _open(self, job: Job) -> Rows:
        if self._rows is None or self._rows[0] != job.id:
            self._rows = (job.id, Rows(job.dataset()))
        return self._rows[1]
