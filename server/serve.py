"""What `disp serve` runs: binds the address, loads the model, answers until it is stopped."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import uvicorn

from purifier.errors import PurifierError
from server.app import create_app
from server.assembly import Assembly, assemble
from server.config import ModelSource, ServerConfig, StartError
from server.data_sets import DataOptions
from server.engine import Engine
from server.errors import ServerError
from server.security.keys import (
    Authenticator,
    KeyFile,
    KeyFileError,
    KeyRing,
    Principal,
    read_secret,
)
from server.store.home import Home

_log = logging.getLogger("disp.server")

_LAST_ANSWERS_SECONDS = 5
"""What is left to send answers after the engine has closed."""


@dataclass(frozen=True)
class KeySource:
    """Where keys come from; every source given counts.

    Attributes:
        keys_file: File of hashed keys, from `create_key`.
        key_file: File that holds one key in plain text (a container's secret).
        extra: Keys held in memory, such as the demo's.
    """

    keys_file: Path | None = None
    key_file: Path | None = None
    extra: KeyRing | None = None


class AnyOf:
    """Several sources of keys."""

    def __init__(self, sources: Sequence[Authenticator]) -> None:
        self._sources = tuple(sources)

    def authenticate(self, secret: str) -> Principal | None:
        found = [source.authenticate(secret) for source in self._sources]
        return next((principal for principal in found if principal is not None), None)


def authenticator(source: KeySource, config: ServerConfig) -> Authenticator | None:
    """Opens the keys.

    Returns:
        None if `config.insecure_no_auth` lets everybody in.

    Raises:
        StartError: If there is no key and nothing else was asked for, or both were.
    """
    sources: list[Authenticator] = [] if source.extra is None else [source.extra]
    try:
        if source.keys_file is not None:
            sources.append(KeyFile(source.keys_file))
        if source.key_file is not None:
            sources.append(read_secret(source.key_file))
    except KeyFileError as error:
        raise StartError(str(error)) from None
    if config.insecure_no_auth:
        if sources:
            raise StartError("Give either keys or --insecure-no-auth, not both.")
        return None
    if not sources:
        raise StartError(
            "A server needs keys: make one with `disp keys create --file keys.json` "
            "and start with --keys-file keys.json. On a loopback address --insecure-no-auth "
            "serves without."
        )
    return AnyOf(sources)


def serve(
    model: ModelSource,
    config: ServerConfig,
    keys: Authenticator | None,
    home: Home,
    data: DataOptions,
) -> int:
    """Serves until a signal comes, then answers what is running.

    A second signal does not wait for that. Prints `listening on http://host:port` when the
    first answer has succeeded.

    Returns:
        Exit status: 0 after a signal, 1 if the model could not be loaded.

    Raises:
        StartError: If the address cannot be bound, or the data folder or the database not used.
    """
    listener = _bind(config)
    with listener:
        parts = assemble(model, config, home, data)
        parts.watcher.start()
        worker = parts.services.worker
        if worker is not None:
            worker.start()
        try:
            return _answer(parts, config, keys, listener)
        finally:
            parts.watcher.stop()
            if worker is not None:
                worker.stop()
            parts.database.close()


def _answer(
    parts: Assembly, config: ServerConfig, keys: Authenticator | None, listener: socket.socket
) -> int:
    app = create_app(parts.engine, config, keys, parts.services)
    server = _Server(
        uvicorn.Config(
            app,
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=ceil(config.drain) + _LAST_ANSWERS_SECONDS,
        ),
        parts.engine,
        config.drain,
    )
    # The server hands the signal on once it has shut down; the process then ends by itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    return asyncio.run(_run(server, parts.engine, listener))


class _Server(uvicorn.Server):
    """Closes the engine while connections are still open.

    So every request inside is answered: by the model, or at the end of the drain by the error
    that says so.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine, drain: float) -> None:
        super().__init__(config)
        self._engine = engine
        self._drain = drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.create_task(asyncio.to_thread(self._engine.close, self._drain))
        await super().shutdown(sockets)
        if self.force_exit:
            self._engine.abandon()
        await closing


async def _run(server: uvicorn.Server, engine: Engine, listener: socket.socket) -> int:
    engine.start()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    ready = asyncio.wrap_future(engine.ready)
    either: set[asyncio.Future[Any]] = {serving, ready}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    status = 0
    if ready.done() and (error := ready.exception()) is not None:
        text = "see the error above."
        if isinstance(error, PurifierError | ServerError):
            text = error.message
        _log.error("The model could not be loaded: %s", text)
        server.should_exit = True
        status = 1
    elif ready.done():
        host, port = listener.getsockname()[:2]
        print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    else:
        ready.cancel()
    await serving
    return status


def _bind(config: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host.strip("[]"), config.port), family=family)
    except OSError:
        raise StartError(
            f"Cannot listen on {config.host}:{config.port}: the port is taken or the address is "
            "not this machine's."
        ) from None
