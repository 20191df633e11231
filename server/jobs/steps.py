"""One step of a job: counted, interruptible, and always with an outcome.

A step returns a mapping with `outcome`: `done`, with what the next steps need, or `over`, after
which the workflow ends because the job's row already says why. Nothing it returns is a path or
data of the data set.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NoReturn

import torch

from purifier.errors import DataError, PurifierError
from server.errors import DatabaseUnavailable, ServerError
from server.jobs.activation import ActivationFailed
from server.jobs.inputs import Inputs
from server.jobs.interrupt import DatabaseLost, JobStopped, WorkerStopping
from server.jobs.job import Job
from server.jobs.memory import MemoryShort
from server.jobs.recovery import TuningFailed
from server.store.attempts import Attempt, AttemptOver, Attempts
from server.store.blobs import BlobDamaged
from server.store.jobs import JobError, JobStatus, JobStore

_log = logging.getLogger("disp.jobs")

Outcome = dict[str, Any]
Work = Callable[[Job, Callable[[], None]], Mapping[str, Any]]

OVER: Outcome = {"outcome": "over"}

TAKEOVERS = 3
"""Workers that may die in one step before it counts as the step's fault."""

_CHECK_SECONDS = 0.5
"""Least time between two looks at the job's row from within a step."""

_RETRIES = 2
_RETRY_SECONDS = 2.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


class StepRunner:
    """Runs steps for one worker.

    Args:
        jobs: The jobs table.
        attempts: What workers write about jobs.
        inputs: Where this machine has what jobs need.
        lost: Called when the worker must end, for the database stays away.
        takeovers: See `TAKEOVERS`.
    """

    def __init__(
        self,
        jobs: JobStore,
        attempts: Attempts,
        inputs: Inputs,
        lost: Callable[[], None],
        *,
        takeovers: int = TAKEOVERS,
    ) -> None:
        self._jobs = jobs
        self._lost = lost
        self._inputs = inputs
        self._attempts = attempts
        self._takeovers = takeovers
        self._stopping = threading.Event()
        self._running = 0
        self._idle = threading.Condition()

    def run(
        self,
        attempt: Attempt,
        step: str,
        work: Work,
        *,
        stage: str,
        status: JobStatus = "running",
    ) -> Outcome:
        """Runs one step to its outcome.

        Args:
            attempt: Whose.
            step: Unique in the attempt, such as `relabel-00042`.
            work: Gets the job and a check to call between batches.
            stage: The job's stage meanwhile.
            status: The job's status meanwhile.
        """
        with self._idle:
            self._running += 1
        try:
            with self._ended_without_database():
                if not self._stopping.is_set():
                    return self._guarded(attempt, step, work, stage, status)
        except WorkerStopping:
            with self._ended_without_database():
                self._attempts.take_back(attempt, step)
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()
        # The process ends soon, and another worker does it.
        self._wait_for_the_end()

    def stop(self, grace: float) -> bool:
        """Ends the running steps between two batches; returns whether all have ended in time."""
        self._stopping.set()
        with self._idle:
            return self._idle.wait_for(lambda: self._running == 0, grace)

    def give_up(self, attempt: Attempt) -> None:
        """Fails an attempt whose workflow cannot go on."""
        error = JobError("internal_error", "The job's workflow failed; see the log.")
        with self._ended_without_database():
            self._fail(attempt, error)
            return
        self._wait_for_the_end()

    @contextmanager
    def _ended_without_database(self) -> Iterator[None]:
        """Ends the worker if the database stays away: nothing can be said about the step then."""
        try:
            yield
        except (DatabaseLost, DatabaseUnavailable):
            _log.exception("The database was out of reach for too long; the worker ends.")
            self._lost()

    @staticmethod
    def _wait_for_the_end() -> NoReturn:
        """Waits for the end of the process: returning would record an outcome of the step."""
        threading.Event().wait()
        raise AssertionError("unreachable")

    def _guarded(
        self, attempt: Attempt, step: str, work: Work, stage: str, status: JobStatus
    ) -> Outcome:
        try:
            begun = self._attempts.start(attempt, step, stage, status)
            if begun > self._takeovers + 1:
                return self._fail(attempt, _poisoned(step, begun - 1))
            job = self._inputs.localised(Job.of(self._jobs.get(attempt.job_id)))
            if missing := job.sources.missing():
                return self._fail(attempt, _unseen(missing))
            return {**self._tried(attempt, work, job), "outcome": "done"}
        except (AttemptOver, JobStopped):
            return dict(OVER)
        except DatabaseUnavailable:
            raise
        except OSError as error:
            _log.exception("Step %s of %s failed.", step, attempt.job_id)
            return self._settle_os_error(attempt, error)
        except Exception as error:
            _log.exception("Step %s of %s failed.", step, attempt.job_id)
            return self._fail(attempt, error_of(error, step))

    def _tried(self, attempt: Attempt, work: Work, job: Job) -> Mapping[str, Any]:
        """Does the work; a store that does not answer is asked again a few times."""
        check = self._check_of(attempt)
        for left in reversed(range(_RETRIES + 1)):
            try:
                return work(job, check)
            except OSError as error:
                if error.errno in _FULL or left == 0:
                    raise
                _log.warning("%s: the store or a file did not answer; again.", attempt.job_id)
                self._stopping.wait(_RETRY_SECONDS)
                check()
        raise AssertionError("unreachable")

    def _check_of(self, attempt: Attempt) -> Callable[[], None]:
        asked = -_CHECK_SECONDS

        def check() -> None:
            nonlocal asked
            if self._stopping.is_set():
                raise WorkerStopping
            # It is called between any two passes of the model; the database is not.
            if time.monotonic() - asked < _CHECK_SECONDS:
                return
            asked = time.monotonic()
            try:
                stands = self._attempts.stands(attempt)
            except DatabaseUnavailable as error:
                raise DatabaseLost from error
            if not stands:
                raise JobStopped

        return check

    def _settle_os_error(self, attempt: Attempt, error: OSError) -> Outcome:
        if error.errno in _FULL:
            return self._settle(
                attempt,
                JobError(
                    "store_full",
                    "The store is full. Nothing that was finished is lost: free some space, then "
                    "resume the job.",
                ),
                "suspend",
            )
        return self._fail(
            attempt,
            JobError(
                "store_failed",
                "A file of the store or of the data set could not be read or written; the "
                "worker's log says which. Resume the job once it can.",
            ),
        )

    def _fail(self, attempt: Attempt, error: JobError) -> Outcome:
        return self._settle(attempt, error, "fail")

    def _settle(
        self, attempt: Attempt, error: JobError, how: Literal["fail", "suspend"]
    ) -> Outcome:
        try:
            if how == "fail":
                self._attempts.fail(attempt, error)
            else:
                self._attempts.suspend(attempt, error)
        except AttemptOver:
            pass  # it was cancelled or resumed meanwhile; that stands
        return dict(OVER)


def error_of(error: Exception, step: str) -> JobError:
    """What a job says about an exception; texts of foreign exceptions are not repeated."""
    if isinstance(error, DataError):
        return JobError("unusable_data_set", error.message, error.param)
    if isinstance(error, PurifierError):
        return JobError(_code(type(error).__name__), error.message, error.param)
    if isinstance(error, ServerError):
        return JobError(error.code, error.message, error.param)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return JobError(
            "memory_short",
            f"Step {step} needs more memory than its device has; create the job anew with a "
            "smaller batch_size.",
        )
    if isinstance(error, MemoryShort):
        return JobError("memory_short", str(error))
    if isinstance(error, ActivationFailed):
        return JobError("activation_failed", f"{error} Resume the job to try again.")
    if isinstance(error, TuningFailed):
        return JobError("tuning_failed", str(error))
    if isinstance(error, BlobDamaged):
        return JobError("store_damaged", f"{error} Create the job anew.")
    return JobError(
        "internal_error", f"Step {step} failed; the log of the worker has the traceback."
    )


def _poisoned(step: str, deaths: int) -> JobError:
    return JobError(
        "worker_lost",
        f"Step {step} ended the worker that ran it {deaths} times; the workers' logs say why. "
        "Most often memory is short: lower batch_size, then create the job anew.",
    )


def _unseen(missing: list[str]) -> JobError:
    return JobError(
        "inputs_missing",
        f"A worker does not see the job's {', '.join(missing)}. Give it --model-root and "
        "--dataset-root, or the server's paths by a shared file system; docs/workers.md says what "
        "workers on other machines need. Resume the job once it has them.",
    )


def _code(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)[1:]
