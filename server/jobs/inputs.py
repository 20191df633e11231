"""Where this machine has what a job needs: its model and its data sets, found by their ids."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from purifier.errors import CheckpointError
from purifier.lab.demo import DATA_FOLDER
from purifier.mdlm.registry import checkpoint_id
from server.data_sets import DEMO, ROOT_PREFIX, DataRoot
from server.errors import CheckpointNotFound
from server.jobs.job import Job
from server.store.blobs import BlobStore
from server.store.checkpoints import CheckpointStore
from server.store.home import Home
from server.store.upload_copies import receive_upload


class Inputs:
    """Finds a job's inputs on this machine.

    Each is looked for where this worker was told to look, then where the server has it, then
    in the shared store.

    Args:
        home: This worker's data folder.
        store: What all workers share.
        checkpoints: With this worker's folder.
        roots: Data sets of this machine by the names that the server knows them by.
        models: Folder that this machine has models in, by their names.
    """

    def __init__(
        self,
        home: Home,
        store: BlobStore,
        checkpoints: CheckpointStore,
        roots: Mapping[str, DataRoot] | None = None,
        models: Path | None = None,
    ) -> None:
        self._home = home
        self._store = store
        self._checkpoints = checkpoints
        self._roots = dict(roots or {})
        self._models = models
        self._lock = threading.Lock()
        self._own: dict[str, Path] = {}

    def localised(self, job: Job) -> Job:
        """The job with its inputs as paths of this machine; one that is missing stays as it is.

        Raises:
            BlobDamaged: If what the shared store has of it is damaged.
            CheckpointDamaged: The same of a checkpoint.
            CheckpointError: If a model of this machine is refused.
        """
        sources, spec = job.sources, job.spec
        with self._lock:
            data, images = self._data(spec.training_file, sources.data, sources.images)
            test, test_images = sources.test, sources.test_images
            if spec.validation_file is not None and test is not None:
                test, test_images = self._data(spec.validation_file, test, test_images)
            model = self._model(spec.model, sources.model)
        local = replace(
            sources, model=model, data=data, images=images, test=test, test_images=test_images
        )
        return replace(job, sources=local)

    def model(self, checkpoint: str, recorded: Path) -> Path:
        """A checkpoint's folder on this machine; `recorded` if it is nowhere.

        Raises:
            As `localised`.
        """
        with self._lock:
            return self._model(checkpoint, recorded)

    def _model(self, checkpoint: str, recorded: Path) -> Path:
        if checkpoint in self._own:
            return self._own[checkpoint]
        own = self._models / checkpoint.partition("@")[0] if self._models is not None else None
        if own is not None and own.is_dir():
            if checkpoint_id(own) != checkpoint:
                raise CheckpointError(
                    f"{own.name} of this worker's --model-root is another checkpoint than "
                    f"{checkpoint}; put that one there.",
                    param="model",
                )
            self._own[checkpoint] = own
            return own
        if recorded.is_dir():
            return recorded
        try:
            record = self._checkpoints.get(checkpoint)
        except CheckpointNotFound:
            return recorded
        beside = None
        if record.base is not None:
            beside = self._model(record.base, self._checkpoints.get(record.base).path)
        return self._checkpoints.bring(checkpoint, beside=beside).path

    def _data(self, data_id: str, path: Path, images: Path | None) -> tuple[Path, Path | None]:
        root = self._roots.get(data_id.removeprefix(ROOT_PREFIX))
        if data_id.startswith(ROOT_PREFIX) and root is not None:
            return root.path, root.images
        if path.exists():
            return path, images
        if data_id == DEMO:
            kind = path.parent.name
            return DATA_FOLDER / kind / path.name, DATA_FOLDER / kind / "images"
        if data_id in path.parts:
            inside = Path(*path.parts[path.parts.index(data_id) + 1 :])
            if (self._home.files / data_id / inside).exists():
                return self._home.files / data_id / inside, images
            folder = receive_upload(self._store, data_id, self._home.uploads)
            if folder is not None:
                return folder / inside, images
        return path, images
