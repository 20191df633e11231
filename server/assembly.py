"""Puts the parts of a server together on one data folder and one database."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from server.config import ModelSource, ServerConfig, StartError
from server.data_sets import DataOptions
from server.deployer import Deployer
from server.engine import Engine, Room
from server.engine.slot import ModelSlot
from server.jobs.child import WorkerChild, worker_command
from server.jobs.service import JobService
from server.services import Services
from server.store.audit import AuditLog
from server.store.blobs import open_store
from server.store.checkpoints import CheckpointStore
from server.store.database import Database, DatabaseError, open_database
from server.store.deployments import Deployments
from server.store.files import FileStore
from server.store.home import Home, HomeError
from server.watcher import Watcher


@dataclass(frozen=True)
class Assembly:
    """A server's parts; nothing runs yet.

    Attributes:
        engine: Answers.
        services: What the routes work with besides it.
        watcher: Looks for what other processes want.
        database: To be closed at the end.
    """

    engine: Engine
    services: Services
    watcher: Watcher
    database: Database


def assemble(model: ModelSource, config: ServerConfig, home: Home, data: DataOptions) -> Assembly:
    """Opens the data folder and the database, and builds what stands on them.

    Raises:
        StartError: If one of them cannot be used.
    """
    try:
        home.create()
        database = open_database(home.database_url)
    except (HomeError, DatabaseError) as error:
        raise StartError(str(error)) from None
    shared = open_store(home, data.store)
    store = CheckpointStore(database, home.checkpoints, store=shared)
    store.sweep()
    slot = ModelSlot(model.device, model.dtype, config.swap)
    deployer = Deployer(store, slot, model.path)
    engine = Engine(
        deployer.first,
        queue_size=config.queue_size,
        deadline=config.deadline,
        masking=config.masking,
        room=Room(config.max_batch, config.max_positions),
        shared_bytes=config.shared_bytes,
        passes_per_step=config.passes_per_step,
    )
    deployer.attach(engine)
    worker = _worker(model, home, data, database) if config.worker else None
    files = FileStore(database, home.files, config.upload, shared)
    services = Services(
        files=files,
        datasets=data.open(files),
        jobs=JobService(database, shared),
        checkpoints=store,
        deployer=deployer,
        audit=AuditLog(database),
        worker=worker,
    )
    return Assembly(engine, services, Watcher(deployer, Deployments(database)), database)


def _worker(model: ModelSource, home: Home, data: DataOptions, database: Database) -> WorkerChild:
    """The worker beside this server, on the same device."""
    command = worker_command(
        data_dir=str(home.root),
        database_url=home.url,
        store=data.store,
        device=model.device,
        dtype=model.dtype,
        name=f"{socket.gethostname()[:80]}-server-{os.getpid()}",
    )
    return WorkerChild(command, database)
