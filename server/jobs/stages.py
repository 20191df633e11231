"""The stages of a job as one worker does them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from purifier.detection.sentences import search_sentence
from purifier.tuning.launch import launch
from server.jobs import detecting, recovery, relabelling
from server.jobs.activation import Activation
from server.jobs.job import Job
from server.jobs.models import JobModels
from server.jobs.planned import planned_answers, planned_steps
from server.store.attempts import Attempt, Attempts
from server.store.blobs import BlobStore
from server.store.checkpoints import CheckpointStore
from server.store.jobs import JobStore
from server.store.result_files import ResultFiles

Check = Callable[[], None]

FEW_STEPS = 100
FEW = (
    "That is few: with so few rows, a smaller finetune.batch_size and a higher "
    "finetune.learning_rate heal more of an attack."
)
"""Said where a fine-tuning has fewer steps: 40 left a trigger in the question that turned answers
into fragments."""


@dataclass(frozen=True)
class Equipment:
    """What a worker computes with.

    Attributes:
        device: Where models run.
        dtype: What they are loaded in.
        scratch: Folder of this worker alone, for files on their way to the store.
        processes: Training processes.
        grace: Seconds that a training has to save its state.
    """

    device: str
    dtype: str
    scratch: Path
    processes: int = 1
    grace: float = 30.0


class Stages:
    """The stages, each a function of the job and a check that is called between batches.

    Args:
        store: What all workers share.
        jobs: The jobs table.
        attempts: What workers write about jobs.
        checkpoints: Where servers find checkpoints.
        activation: The last stage.
        equipment: What this worker computes with.
        results: Lists the purified data set for its owner.

    Attributes:
        launch: Starts a training.
    """

    launch: recovery.Launch = staticmethod(launch)

    def __init__(
        self,
        store: BlobStore,
        jobs: JobStore,
        attempts: Attempts,
        checkpoints: CheckpointStore,
        activation: Activation,
        equipment: Equipment,
        results: ResultFiles,
    ) -> None:
        self.store = store
        self.results = results
        self.jobs = jobs
        self.attempts = attempts
        self.checkpoints = checkpoints
        self.activation = activation
        self.equipment = equipment
        self.models = JobModels(equipment.device, equipment.dtype)

    def plan(self, attempt: Attempt, job: Job, check: Check) -> Mapping[str, Any]:
        """Plans the shards; returns the numbers of those that are still to do."""
        made = relabelling.plan(job, self.store, check)
        finished = relabelling.finished_shards(job, self.store)
        counts = {"rows": made["rows"], "bad": len(made["bad"]), "shards": len(made["shards"])}
        self.attempts.planned(
            attempt,
            made["rows"],
            f"{made['rows']} rows in {len(made['shards'])} shards; {len(made['bad'])} rows cannot "
            f"be used; {len(finished)} shards are finished.",
            {**counts, "finished": len(finished), "reasons": made["audit"]["reasons"]},
            steps=planned_steps(job, made),
            answers=planned_answers(job, made),
        )
        for remark in made["audit"].get("remarks", []):
            self.attempts.event(attempt, remark, {})
        for row in made["audit"]["examples"][:10]:
            self.attempts.event(attempt, row["message"], row)
        self.attempts.relabelling(attempt, {n: shard["rows"] for n, shard in finished.items()})
        wanted = job.settings.purify.searched
        left = [n for n in range(len(made["shards"])) if n not in finished]
        return {"shards": left, "detect": wanted and bool(left)}

    def detect(self, attempt: Attempt, job: Job, check: Check) -> Mapping[str, Any]:
        """Searches the training set for rows that a backdoor answers."""
        facts = detecting.detect(
            job,
            self.store,
            self._scratch(job),
            lambda: self.models.model(job),
            check,
        )
        self.attempts.event(attempt, search_sentence(facts), facts)
        return {}

    def relabel(self, attempt: Attempt, job: Job, check: Check, shard: int) -> Mapping[str, Any]:
        """Relabels a shard."""
        manifest, computed = relabelling.relabel(
            job,
            self.store,
            shard,
            lambda: self.models.rows(job),
            lambda: self.models.purifier(job, self.store),
            check,
            lambda rows: self.attempts.shard_progress(attempt, shard, rows),
        )
        self.attempts.shard_finished(
            attempt, shard, manifest["rows"], _counts(manifest) | {"computed": computed}
        )
        return {"sha256": manifest["sha256"], **_counts(manifest)}

    def merge(self, attempt: Attempt, job: Job, check: Check) -> Mapping[str, Any]:
        """Writes the purified data set."""
        self.attempts.relabelled(attempt)
        facts = relabelling.merge(job, self.store, self._scratch(job), check)
        written = self.store.folder_manifest(job.merged)["files"]
        self.results.register(job.id, job.key_id, written)
        self.attempts.event(attempt, "The purified data set is written.", facts)
        unpurified = relabelling.problems(job, self.store)
        if unpurified is not None:
            self.attempts.event(attempt, unpurified, {"problems": facts["problems"]})
        return {}

    def tune(self, attempt: Attempt, job: Job, check: Check) -> Mapping[str, Any]:
        """Fine-tunes the model."""
        self.models.release()

        def listen(event: Mapping[str, Any]) -> None:
            if event["event"] == "step":
                self.attempts.tuning_progress(attempt, event["step"], event["steps"], event["eta"])
            data = {name: value for name, value in event.items() if name != "time"}
            self.attempts.event(attempt, _sentence(event), data, metrics=event["event"] == "step")

        facts = recovery.tune(
            job,
            self.store,
            self._scratch(job),
            check,
            listen,
            device=self.equipment.device,
            dtype=self.equipment.dtype,
            processes=self.equipment.processes,
            grace=self.equipment.grace,
            start=self.launch,
        )
        if facts.get("trained_tokens") is not None:
            self.attempts.tuned(attempt, facts["trained_tokens"])
        return {}

    def evaluate(self, attempt: Attempt, job: Job, check: Check) -> Mapping[str, Any]:
        """Measures the model before and after."""
        self.models.release()
        equipment = self.equipment
        began = None if self.store.has_folder(job.evaluation) else perf_counter()
        result = recovery.evaluate(
            job,
            self.store,
            self._scratch(job),
            check,
            device=equipment.device,
            dtype=equipment.dtype,
        )
        if began is not None:
            self.attempts.evaluated(attempt, perf_counter() - began)
        self.attempts.event(
            attempt, "The model is evaluated.", {"metrics": result["metrics"]}, metrics=True
        )
        return {}

    def stage(self, attempt: Attempt, job: Job, check: Check) -> Mapping[str, Any]:
        """Puts the checkpoint where servers find it."""
        checkpoint = recovery.stage(job, self.store, self._scratch(job), self.checkpoints, check)
        self.attempts.staged(attempt, checkpoint, f"The checkpoint {checkpoint} is staged.")
        return {"checkpoint": checkpoint}

    def gate(self, attempt: Attempt, job: Job, check: Check) -> Mapping[str, Any]:
        """Judges the evaluation and writes the report."""
        verdict = recovery.gate(job, self.store, self.checkpoints)
        created_at = self.jobs.get(job.id).created_at
        recovery.report(job, self.store, self._scratch(job), created_at)
        passed = bool(verdict["passed"])
        message = "The gate is passed." if passed else "The gate is not passed."
        self.attempts.event(attempt, message, {"verdict": verdict})
        self.store.sweep(job.folder)
        shutil.rmtree(self._scratch(job), ignore_errors=True)
        return {"passed": passed}

    def activate(
        self, attempt: Attempt, job: Job, check: Check, checkpoint: str, passed: bool
    ) -> Mapping[str, Any]:
        """Activates the checkpoint, waits for a person, or leaves it staged; ends the job."""
        data = {"checkpoint": checkpoint, "passed": passed}
        if not passed:
            self.attempts.succeed(
                attempt, "The checkpoint is staged; the gate did not let it go live.", data
            )
        elif job.spec.activate == "never":
            self.attempts.succeed(attempt, "The checkpoint is staged, as was asked.", data)
        elif job.spec.activate == "approval" and not self.attempts.approved(attempt):
            self.attempts.wait_for_approval(attempt)
        else:
            self.attempts.succeed(attempt, self.activation(attempt, checkpoint, check), data)
        return {}

    def _scratch(self, job: Job) -> Path:
        folder = self.equipment.scratch / job.id
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _counts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    names = ("rows", "relabelled", "flagged", "dropped", "problems", "further", "seconds")
    return {name: manifest[name] for name in names if name in manifest}


def _sentence(event: Mapping[str, Any]) -> str:
    match event["event"]:
        case "step":
            return f"Step {event['step']} of {event['steps']}, loss {event['loss']:.4f}."
        case "started":
            found = f"The fine-tuning goes from step {event['step']} of {event['steps']}."
            return f"{found} {FEW}" if event["steps"] < FEW_STEPS else found
        case "saved":
            return f"The fine-tuning has saved its state at step {event['step']}."
        case "stopped":
            return f"The fine-tuning has stopped at step {event['step']}."
        case "failed":
            return str(event["message"])
    return "The fine-tuning is done."
