"""A worker: one process that does jobs, one device task at a time."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dbos import DBOS, DBOSConfig
from dbos import DBOSPortableJSONSerializer as JsonSerializer

from purifier.errors import CheckpointError
from server.data_sets import DataRoot
from server.errors import DatabaseUnavailable, ServerError
from server.jobs.activation import Activation
from server.jobs.inputs import Inputs
from server.jobs.memory import MemoryShort, require_memory
from server.jobs.stages import Equipment, Stages
from server.jobs.steps import TAKEOVERS, StepRunner
from server.jobs.upkeep import Timings, Upkeep
from server.jobs.workflow import APPLICATION_VERSION, DEVICE_QUEUE, JOBS_QUEUE, Pipeline
from server.store.attempts import Attempts
from server.store.blobs import BlobDamaged, open_store
from server.store.checkpoints import CheckpointStore
from server.store.database import open_database
from server.store.events import EventLog
from server.store.home import Home
from server.store.jobs import ACTIVE, JobStore
from server.store.result_files import ResultFiles
from server.store.workers import WorkerTable

_log = logging.getLogger("disp.jobs")

_JOBS_AT_ONCE = 8
"""Jobs that one worker leads; their device tasks wait for one another all the same."""


@dataclass(frozen=True)
class WorkerConfig:
    """How a worker is set up.

    Attributes:
        home: Data folder and database.
        store: URL of the shared store; None is the data folder's own.
        roots: Data sets of this machine by the names that the server knows them by.
        models: Folder that this machine has models in, by their names.
        name: Unique among the workers that live.
        device: Where models run.
        dtype: What they are loaded in.
        processes: Training processes.
        timings: How often it looks after things.
        takeovers: Workers that may die in one step before it counts as the step's fault.
    """

    home: Home
    store: str | None = None
    roots: Mapping[str, DataRoot] = field(default_factory=dict)
    models: Path | None = None
    name: str = field(default_factory=lambda: default_name(1))
    device: str = "cpu"
    dtype: str = "float32"
    processes: int = 1
    timings: Timings = field(default_factory=Timings)
    takeovers: int = TAKEOVERS


def default_name(slot: int) -> str:
    """The name of a worker that was given none: the machine's, and its slot there."""
    return f"{socket.gethostname()[:100]}-{slot}"


class JobWorker:
    """A worker from its start to its end; one in a process.

    Args:
        config: How it is set up.
        make_stages: Makes its stages; another one changes what they do.

    Raises:
        NameTaken: If a worker of this name is alive.
        MemoryShort: If the device cannot hold the model of a job that waits.
        DatabaseError: If the database cannot be used.
        HomeError: If the data folder cannot be used.
    """

    def __init__(self, config: WorkerConfig, make_stages: Callable[..., Stages] = Stages) -> None:
        self._config = config
        home = config.home.create()
        timings = config.timings
        self._database = open_database(
            home.database_url, patience=timings.patience, lock_wait=timings.lock_wait
        )
        # What is done again and again anyway is not waited for.
        hasty = self._database.with_patience(0.0)
        self._jobs = JobStore(self._database)
        self._attempts = attempts = Attempts(self._database)
        store = open_store(home, config.store)
        checkpoints = CheckpointStore(self._database, home.checkpoints, store=store)
        self._inputs = Inputs(home, store, checkpoints, config.roots, config.models)
        self._check_memory()
        self._workers = WorkerTable(hasty, patience=timings.patience)
        self._executor = self._workers.register(config.name, config.device)
        self._scratch = home.scratch / self._executor
        self._scratch.mkdir(parents=True)
        self._runner = StepRunner(
            self._jobs, attempts, self._inputs, self._end, takeovers=config.takeovers
        )
        stages = make_stages(
            store,
            self._jobs,
            attempts,
            checkpoints,
            Activation(self._database, home.checkpoints, attempts),
            Equipment(
                config.device,
                config.dtype,
                self._scratch,
                processes=config.processes,
                grace=timings.grace,
            ),
            ResultFiles(self._database, store),
        )
        DBOS(config=_engine_config(home.database_url, self._executor))
        pipeline = Pipeline(stages, self._runner, poll=timings.poll)
        self._upkeep = Upkeep(
            self._executor,
            self._workers,
            Attempts(hasty),
            pipeline,
            timings,
            home.scratch,
            self._end,
        )

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set, then hands back what is in hand; the process ends here."""
        DBOS.launch()
        poll = self._config.timings.poll
        for queue, at_once in ((JOBS_QUEUE, _JOBS_AT_ONCE), (DEVICE_QUEUE, 1)):
            DBOS.register_queue(
                queue,
                worker_concurrency=at_once,
                polling_interval_sec=poll,
                on_conflict="always_update",
            )
        self._upkeep.start()
        print(f"worker {self._config.name} is ready", flush=True)
        stop.wait()
        self._runner.stop(self._config.timings.grace)
        self._upkeep.stop()
        try:
            self._workers.leave(self._executor)
        except DatabaseUnavailable:
            _log.warning("The database does not answer; the others see that this worker is gone.")
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._end()

    def _check_memory(self) -> None:
        """Says at once if this device cannot do a job that waits for a worker."""
        config = self._config
        for job in self._jobs.list(limit=100, statuses=ACTIVE):
            try:
                model = self._inputs.model(job.model, Path(str(job.sources["model"])))
                require_memory(model, config.device, config.dtype)
            except (CheckpointError, ServerError, BlobDamaged) as error:
                # Its first step says what is wrong with it; others may be well.
                _log.warning("The model of %s cannot be read: %s", job.id, error)
            except MemoryShort as error:
                EventLog(self._database).refused(job.id, config.name, str(error))
                raise

    @staticmethod
    def _end() -> None:
        # Threads of steps and of the job engine must not do anything more, nor be waited for.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)


def _engine_config(database_url: str, executor: str) -> DBOSConfig:
    return DBOSConfig(
        name="disp",
        system_database_url=database_url,
        application_version=APPLICATION_VERSION,
        executor_id=executor,
        serializer=JsonSerializer(),
        enable_otlp=False,
        # Its launch advertises a service of its vendor at level INFO.
        log_level="WARNING",
    )
