"""The stage of a job that searches the training set for rows that a backdoor answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from purifier.data.dataset import DataSet
from purifier.data.sample import Sample
from purifier.detection import DetectConfig, Detector, fit_detector, read_detector
from purifier.mdlm.base import Mdlm
from server.jobs.job import Job
from server.store.blobs import BlobStore

Check = Callable[[], None]

_CHECK_ROWS = 64


def detect(
    job: Job, store: BlobStore, scratch: Path, model: Callable[[], Mdlm], check: Check
) -> dict[str, Any]:
    """Fits the detector of a job, unless that was done.

    Args:
        job: The job.
        store: The shared store.
        scratch: A folder for files on their way there.
        model: Loads the compromised model; not called where there is nothing left to do.
        check: Called between the passes of the model.

    Returns:
        `rows` that were looked at and `groups` that were found, without their rows.

    Raises:
        DataError: If the data set cannot be read.
        CheckpointError: If the checkpoint is refused.
    """
    if store.has_folder(job.detection):
        return dict(store.folder_manifest(job.detection)["facts"])
    dataset = job.dataset()
    purify = job.settings.purify
    config = DetectConfig.within(purify.batch_size, purify.seed)
    samples = _drawn(dataset, store.read_json(job.plan), config, check)
    found = fit_detector(model(), samples, dataset.images, config, check=check)
    facts = {"rows": found.looked_at, "groups": [group.to_dict() for group in found.groups]}
    folder = scratch / "detection"
    folder.mkdir(parents=True, exist_ok=True)
    if found.detector is not None:
        found.detector.save(folder)
    store.put_folder(job.detection, folder, facts)
    shutil.rmtree(folder)
    return facts


def detector(job: Job, store: BlobStore, mdlm: Mdlm) -> Detector | None:
    """The detector of a job: the one that it has made, else that of its checkpoint, if any.

    Raises:
        BlobDamaged: If a file of it is missing or altered.
        CheckpointError: If it is of another model.
    """
    width = len(mdlm.mask_embedding)
    made = None
    if job.settings.purify.searched and store.has_folder(job.detection):
        made = read_detector(store.local_folder(job.detection), width)
    return made or read_detector(job.sources.model, width)


def _drawn(
    dataset: DataSet, plan: Mapping[str, Any], config: DetectConfig, check: Check
) -> list[Sample]:
    """Usable rows, and twice as many as are looked at: some have no image, or no answer."""
    drawn = set(range(plan["rows"]))
    if len(drawn) > 2 * config.rows:
        rng = np.random.default_rng(config.seed)
        drawn = {int(n) for n in rng.choice(plan["rows"], 2 * config.rows, replace=False)}
    drawn -= {record for record, _ in plan["bad"]}
    samples = []
    for number, row in enumerate(dataset.rows()):
        if number % _CHECK_ROWS == 0:
            check()
        if number in drawn and isinstance(row, Sample):
            samples.append(row)
    return samples
