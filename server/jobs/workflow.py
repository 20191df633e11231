"""The durable workflow: which step follows which, and on which queue.

The order of the steps is that of `PIPELINE`: whoever changes it raises the number, so that
jobs begun under the old order go on as new attempts and are never replayed in the wrong one.
A workflow body has no clock, no chance and no file: what it depends on are outcomes of steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from dbos import DBOS, SetWorkflowID

from server.jobs.stages import Stages
from server.jobs.steps import OVER, Outcome, StepRunner
from server.store.attempts import Attempt
from server.store.jobs import JobStatus

_log = logging.getLogger("disp.jobs")

T = TypeVar("T")

PIPELINE = 2
"""Version of the order of the steps."""

APPLICATION_VERSION = f"pipeline-{PIPELINE}"

JOBS_QUEUE = "disp-jobs"
"""Whole jobs; one waits here until a worker has a place for it."""
DEVICE_QUEUE = "disp-device"
"""Shards, trainings and evaluations; a worker does one at a time."""

QUEUE_OF = {"purification": JOBS_QUEUE, "shard": DEVICE_QUEUE, "device": DEVICE_QUEUE}
"""Queue by name of the workflow."""


class Pipeline:
    """The workflows of this process; made once, before the job engine starts.

    Args:
        stages: What the steps do.
        runner: How they are run.
        poll: Seconds between two looks at a child workflow.
    """

    def __init__(self, stages: Stages, runner: StepRunner, *, poll: float = 1.0) -> None:
        self._stages = stages
        self._runner = runner
        self._poll = poll
        self._plan = self._step("plan", stages.plan, "validating_files")
        self._merge = self._step("merge", stages.merge)
        self._stage = self._step("stage", stages.stage)
        self._gate = self._step("gate", stages.gate)
        self._relabel = DBOS.step(name="relabel")(_function(self._relabel_step))
        self._activate = DBOS.step(name="activate")(_function(self._activate_step))
        self._detect = self._step("detect", stages.detect)
        self._tune = self._step("tune", stages.tune)
        self._evaluate = self._step("evaluate", stages.evaluate)
        self._lost = DBOS.step(name="lost")(_function(self._lost_step))
        self._shard = DBOS.workflow(name="shard")(_function(self._shard_workflow))
        self._device = DBOS.workflow(name="device")(_function(self._device_workflow))
        self._purification = DBOS.workflow(name="purification")(
            _function(self._purification_workflow)
        )

    def enqueue(self, attempt: Attempt) -> None:
        """Hands an attempt to the job engine; doing it again changes nothing."""
        with SetWorkflowID(workflow_id(attempt)):
            DBOS.enqueue_workflow(JOBS_QUEUE, self._purification, attempt.job_id, attempt.number)

    def _purification_workflow(self, job_id: str, number: int) -> str:
        try:
            return self._order(job_id, number)
        except Exception:
            _log.exception("The workflow of %s failed.", job_id)
            self._lost(job_id, number)
            return "lost"

    def _order(self, job_id: str, number: int) -> str:
        planned = self._plan(job_id, number)
        if _over(planned):
            return "over"
        if planned.get("detect") and _over(
            self._children(job_id, number, [("detect", self._device, "detect")])[0]
        ):
            return "over"
        shards = [(f"shard-{n:05d}", self._shard, n) for n in planned["shards"]]
        if any(map(_over, self._children(job_id, number, shards))):
            return "over"
        if _over(self._merge(job_id, number)):
            return "over"
        for stage in ("tune", "evaluate"):
            if _over(self._children(job_id, number, [(stage, self._device, stage)])[0]):
                return "over"
        staged = self._stage(job_id, number)
        if _over(staged):
            return "over"
        judged = self._gate(job_id, number)
        if _over(judged):
            return "over"
        self._activate(job_id, number, staged["checkpoint"], judged["passed"])
        return "done"

    def _children(
        self, job_id: str, number: int, children: list[tuple[str, Callable[..., Outcome], Any]]
    ) -> list[Outcome]:
        """Runs workflows on the device queue, and waits for all of them."""
        parent = workflow_id(Attempt(job_id, number))
        handles = []
        for name, workflow, argument in children:
            with SetWorkflowID(f"{parent}.{name}"):
                handles.append(
                    DBOS.enqueue_workflow(DEVICE_QUEUE, workflow, job_id, number, argument)
                )
        return [handle.get_result(polling_interval_sec=self._poll) for handle in handles]

    def _shard_workflow(self, job_id: str, number: int, shard: int) -> Outcome:
        return self._relabel(job_id, number, shard)

    def _device_workflow(self, job_id: str, number: int, stage: str) -> Outcome:
        stages = {"detect": self._detect, "tune": self._tune, "evaluate": self._evaluate}
        return stages[stage](job_id, number)

    def _step(
        self, name: str, stage: Callable[..., Any], status: JobStatus = "running"
    ) -> Callable[[str, int], Outcome]:
        def run(job_id: str, number: int) -> Outcome:
            attempt = Attempt(job_id, number)
            return self._runner.run(
                attempt,
                name,
                lambda job, check: stage(attempt, job, check),
                stage=name,
                status=status,
            )

        return DBOS.step(name=name)(run)

    def _relabel_step(self, job_id: str, number: int, shard: int) -> Outcome:
        attempt = Attempt(job_id, number)
        return self._runner.run(
            attempt,
            f"relabel-{shard:05d}",
            lambda job, check: self._stages.relabel(attempt, job, check, shard),
            stage="relabel",
        )

    def _activate_step(self, job_id: str, number: int, checkpoint: str, passed: bool) -> Outcome:
        attempt = Attempt(job_id, number)
        return self._runner.run(
            attempt,
            "activate",
            lambda job, check: self._stages.activate(attempt, job, check, checkpoint, passed),
            stage="activate",
        )

    def _lost_step(self, job_id: str, number: int) -> Outcome:
        self._runner.give_up(Attempt(job_id, number))
        return dict(OVER)


def _function(method: Callable[..., T]) -> Callable[..., T]:
    """A method as a function, on which the job engine can leave its marks."""

    def call(*arguments: Any) -> T:
        return method(*arguments)

    return call


def workflow_id(attempt: Attempt) -> str:
    """The engine's name of an attempt; the same attempt is run once, however often enqueued."""
    return f"{attempt.job_id}.{attempt.number}"


def _over(outcome: Outcome) -> bool:
    return bool(outcome["outcome"] == "over")
