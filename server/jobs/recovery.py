"""The later stages of a job: fine-tune, evaluate, stage the checkpoint, judge it, report.

As in `server.jobs.relabelling`, each looks for its output first and puts it into the shared
store whole or not at all.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from purifier.evaluation.gate import judge
from purifier.evaluation.job import EvaluationSpec, evaluate_job
from purifier.evaluation.job_report import write_report
from purifier.mdlm.delta import is_delta, root_of
from purifier.tuning.events import EVENTS_FILE, read_events
from purifier.tuning.launch import stop
from purifier.tuning.spec import FinetuneSpec
from server.errors import CheckpointNotFound
from server.jobs.job import Job
from server.schemas.version import version
from server.store.blobs import BlobStore
from server.store.checkpoints import CheckpointStore

_log = logging.getLogger("disp.jobs")

Check = Callable[[], None]
Listen = Callable[[Mapping[str, Any]], None]
Launch = Callable[..., "subprocess.Popen[bytes]"]

EVALUATION_FILE = "evaluation.json"
_STATE_FILE = "state.safetensors"
_POLL_SECONDS = 0.2
_STEP_SECONDS = 1.0
_LIBRARIES = ("torch", "transformers", "dbos")


class TuningFailed(Exception):
    """The fine-tuning ended with an error of its own; its message is safe to show."""


def tune(
    job: Job,
    store: BlobStore,
    scratch: Path,
    check: Check,
    listen: Listen,
    *,
    device: str,
    dtype: str,
    processes: int = 1,
    grace: float = 30.0,
    start: Launch,
) -> dict[str, Any]:
    """Fine-tunes the compromised model on the purified data, in a process group of its own.

    A training that was stopped or killed, here or by another worker, goes on from its last
    saved state.

    Args:
        job: The job.
        store: The shared store.
        scratch: Folder of this job on this machine.
        check: Called while it trains; what it raises stops the training, which saves first.
        listen: Gets the training's events; what it raises stops the training, too.
        device: Where it trains.
        dtype: Of the frozen weights.
        processes: Training processes.
        grace: Seconds it has to save before it is killed.
        start: Starts the process group.

    Returns:
        `{name, loss, trained_tokens}`: the checkpoint's name, [step, loss] of the training, and
        the answer tokens it was trained on, over all epochs, or None where an older version of
        the service trained it.

    Raises:
        TuningFailed: If the training failed.
    """
    if store.has_folder(job.tuned):
        return dict(store.folder_manifest(job.tuned)["facts"])
    check()
    merged = store.local_folder(job.merged)
    label_file = store.folder_manifest(job.merged)["facts"]["label_file"]
    work = _work_folder(job, store, scratch)
    original = job.dataset()
    spec = FinetuneSpec(
        checkpoint=job.sources.model.resolve(),
        data=merged / label_file,
        images=original.images.resolve(),
        output=work / "result" / job.result_name,
        work=work,
        config=job.settings.finetune,
        device=device,
        dtype=dtype,
        mark_images=job.spec.mark_images,
    )
    spec.output.parent.mkdir(parents=True, exist_ok=True)
    spec.write(work / "spec.json")
    events = work / EVENTS_FILE
    _, seen = read_events(events)
    process = start(work / "spec.json", processes=processes)
    try:
        _watch(job, store, process, events, seen, check, listen)
    except BaseException:
        # Whatever ends this step, its training must not outlive it: it would hold its lock.
        stop(process, grace)
        _keep_state_if_possible(job, store, work)
        raise
    told, _ = read_events(events)
    if process.returncode != 0 or not spec.output.is_dir():
        raise TuningFailed(_reason(told))
    metrics = json.loads((spec.output / "delta.json").read_text(encoding="utf-8"))["metrics"]
    facts = {
        "name": job.result_name,
        "loss": _losses(told),
        "trained_tokens": metrics.get("trained_tokens"),
    }
    store.put_folder(job.tuned, spec.output, facts)
    shutil.rmtree(work)
    if not store.is_local:
        for name in (EVENTS_FILE, _STATE_FILE):
            store.remove(f"{job.tuning}/{name}")
    return facts


def candidate(job: Job, store: BlobStore, scratch: Path) -> Path:
    """The fine-tuned checkpoint as a folder that can be loaded: its base lies beside it.

    Raises:
        BlobDamaged: If a file of it is missing or altered.
    """
    source = store.local_folder(job.tuned)
    place = scratch / "candidate" / job.result_name
    shutil.rmtree(place.parent, ignore_errors=True)
    place.mkdir(parents=True)
    for name in store.folder_manifest(job.tuned)["files"]:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, place / name)
    if is_delta(place):
        base, name = root_of(job.sources.model.resolve())
        (place.parent / name).symlink_to(base, target_is_directory=True)
    return place


def evaluate(
    job: Job, store: BlobStore, scratch: Path, check: Check, *, device: str, dtype: str
) -> dict[str, Any]:
    """Measures the model before and after; see `purifier.evaluation.job`.

    Raises:
        DataError: If a data set cannot be used.
        CheckpointError: If a checkpoint is refused.
    """
    if store.has_folder(job.evaluation):
        return dict(store.read_json(f"{job.evaluation}/{EVALUATION_FILE}"))
    check()
    plan = store.read_json(job.plan)
    labels = [store.read_json(job.shard(n))["file"] for n in range(len(plan["shards"]))]
    output = scratch / "evaluation"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    settings = job.settings
    spec = EvaluationSpec(
        before=job.sources.model,
        after=candidate(job, store, scratch),
        data=job.sources.data,
        output=output,
        images=job.sources.images,
        labels=tuple(store.local(key) for key in labels),
        test=job.sources.test,
        test_images=job.sources.test_images,
        masking=settings.purify.masking,
        generation=replace(settings.purify.generation, seed=job.spec.seed),
        config=settings.evaluation,
        device=device,
        dtype=dtype,
        mark_images=job.spec.mark_images,
    )
    result = evaluate_job(spec, check)
    (output / EVALUATION_FILE).write_text(json.dumps(result, sort_keys=True, indent=1) + "\n")
    check()
    store.put_folder(job.evaluation, output)
    shutil.rmtree(output)
    return result


def stage(
    job: Job, store: BlobStore, scratch: Path, checkpoints: CheckpointStore, check: Check
) -> str:
    """Puts the checkpoint where servers find it; returns its id.

    Raises:
        CheckpointError: If it is refused.
        BlobDamaged: If a file of it is missing or altered.
    """
    check()
    try:
        parent = checkpoints.get(job.spec.model)
    except CheckpointNotFound:
        parent = checkpoints.register(job.sources.model)
    folder = candidate(job, store, scratch)
    base = None
    if is_delta(folder):
        base = parent.id if parent.base is None else parent.base
    evaluation = store.read_json(f"{job.evaluation}/{EVALUATION_FILE}")
    record = checkpoints.stage(
        folder,
        base=base,
        parent=parent.id,
        job_id=job.id,
        metrics=evaluation["metrics"],
        beside=None if base is None else root_of(job.sources.model.resolve())[0],
    )
    checkpoints.verify(record.id)
    shutil.rmtree(folder.parent)
    store.write_json(job.staged, {"checkpoint": record.id, "parent": parent.id})
    return record.id


def gate(job: Job, store: BlobStore, checkpoints: CheckpointStore) -> dict[str, Any]:
    """Judges the evaluation by the job's limits; returns the verdict as JSON values."""
    evaluation = store.read_json(f"{job.evaluation}/{EVALUATION_FILE}")
    verdict = judge(evaluation["metrics"], job.settings.gate)
    checkpoint = store.read_json(job.staged)["checkpoint"]
    checkpoints.record_gate(checkpoint, verdict.passed, verdict.reasons)
    store.write_json(job.verdict, verdict.to_dict())
    return verdict.to_dict()


def report(job: Job, store: BlobStore, scratch: Path, created_at: float) -> None:
    """Writes the job's report as HTML and JSON."""
    plan = store.read_json(job.plan)
    merged = store.folder_manifest(job.merged)["facts"]
    staged = store.read_json(job.staged)
    shards = [store.read_json(job.shard(n)) for n in range(len(plan["shards"]))]
    facts = {
        "job": {
            "id": job.id,
            "created_at": created_at,
            "model": job.spec.model,
            "training_file": job.spec.training_file,
            "seed": job.spec.seed,
        },
        "verdict": store.read_json(job.verdict),
        "evaluation": store.read_json(f"{job.evaluation}/{EVALUATION_FILE}"),
        "checkpoints": {"before": {"id": staged["parent"]}, "after": {"id": staged["checkpoint"]}},
        "data": {
            "name": job.spec.training_file,
            "format": plan["format"],
            "sha256": plan["sha256"],
            **{name: count for name, count in merged.items() if name != "label_file"},
        },
        "detection": _detection(job, store),
        "settings": job.settings.to_dict(),
        "training": {"loss": store.folder_manifest(job.tuned)["facts"]["loss"]},
        "seconds": {"relabel": round(sum(shard["seconds"] for shard in shards), 1)},
        "versions": versions(),
    }
    folder = scratch / "report"
    write_report(facts, folder, pictures=store.local_folder(job.evaluation))
    for path in sorted(folder.iterdir()):
        store.put(f"{job.report}/{path.name}", path)
    shutil.rmtree(folder)


def _detection(job: Job, store: BlobStore) -> dict[str, Any] | None:
    """What the training set showed, where it was searched."""
    if not store.has_folder(job.detection):
        return None
    return dict(store.folder_manifest(job.detection)["facts"])


def versions() -> dict[str, str]:
    """What made a report: the service, which need not be installed, and its libraries."""
    return {"disp-server": version()} | {
        name: importlib.metadata.version(name) for name in _LIBRARIES
    }


def _watch(
    job: Job,
    store: BlobStore,
    process: subprocess.Popen[bytes],
    events: Path,
    seen: int,
    check: Check,
    listen: Listen,
) -> None:
    """Follows a training until its process has ended.

    Every event is passed on, of steps the first, the last, and one a second: the database is
    slower than a training of short steps.
    """
    ended = False
    told = -_STEP_SECONDS
    while not ended:
        ended = process.poll() is not None
        new, seen = read_events(events, seen)
        for event in new:
            if event["event"] == "step" and event["step"] < event["steps"]:
                if time.monotonic() - told < _STEP_SECONDS:
                    continue
                told = time.monotonic()
            listen(event)
            if event["event"] == "saved":
                _keep_state(job, store, events.parent)
        if not ended:
            check()
            time.sleep(_POLL_SECONDS)


def _work_folder(job: Job, store: BlobStore, scratch: Path) -> Path:
    """Where the training keeps its state: in the store, if that is a folder of this machine."""
    if store.is_local:
        work = store.folder(job.tuning)
        work.mkdir(parents=True, exist_ok=True)
        return work
    work = scratch / "tuning"
    work.mkdir(parents=True, exist_ok=True)
    for name in (EVENTS_FILE, _STATE_FILE):
        if store.exists(f"{job.tuning}/{name}"):
            (work / name).write_bytes(store.read(f"{job.tuning}/{name}"))
    return work


def _keep_state(job: Job, store: BlobStore, work: Path) -> None:
    """Copies a saved state to a remote store, where another machine finds it."""
    for name in (EVENTS_FILE, _STATE_FILE):
        if not store.is_local and (work / name).is_file():
            store.put(f"{job.tuning}/{name}", work / name)


def _keep_state_if_possible(job: Job, store: BlobStore, work: Path) -> None:
    """`_keep_state` on the way out for another reason, which must not be lost."""
    try:
        _keep_state(job, store, work)
    except Exception:
        _log.exception(
            "%s: the state of the stopped fine-tuning could not be copied to the store; it goes on "
            "from the last copy.",
            job.id,
        )


def _losses(told: list[dict[str, Any]]) -> list[list[float]]:
    """[step, loss]; a step that was taken twice counts once, for both are the same."""
    found = {event["step"]: event["loss"] for event in told if event["event"] == "step"}
    return [[step, loss] for step, loss in sorted(found.items())]


def _reason(told: list[dict[str, Any]]) -> str:
    failed = [event["message"] for event in told if event["event"] == "failed"]
    return failed[-1] if failed else "The training process ended without a word; see its log."
