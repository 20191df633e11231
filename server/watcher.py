"""What a server looks for in the database while it serves: requests, and others' activations."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable

from purifier.errors import PurifierError
from server.deployer import Deployer
from server.errors import NotReady, ServerError
from server.store.audit import Actor
from server.store.deployments import DeploymentRequest, Deployments

_log = logging.getLogger("disp.watcher")

POLL_SECONDS = 0.5
_BEAT_SECONDS = 1.0
_AGAIN_SECONDS = 60.0
"""After how long something that has failed is tried again."""


class Watcher:
    """Answers requests of other processes and follows other servers of the deployment.

    Args:
        deployer: Does what is asked.
        deployments: The requests, and where this server says that it lives.
    """

    def __init__(self, deployer: Deployer, deployments: Deployments) -> None:
        self._deployer = deployer
        self._deployments = deployments
        self._server = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._work: threading.Thread | None = None
        self._ended: tuple[str, str | None] | None = None
        self._next_beat = self._next_follow = self._next_complaint = 0.0

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Ends watching and says that the server stops."""
        self._stop.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                self._look()
            except NotReady:
                continue
            except Exception:
                # The database may come back; requests wait in it as long as it is gone.
                if time.monotonic() >= self._next_complaint:
                    _log.exception("The database cannot be watched; trying on.")
                    self._next_complaint = time.monotonic() + _AGAIN_SECONDS
        try:
            if not self._is_working():
                self._note_end()
            self._deployments.leave(self._server)
        except Exception:
            _log.exception("The database was not told that this server stops.")

    def _look(self) -> None:
        working = self._is_working()
        if not working:
            # Also if the model is lost: whoever asked is to hear how it ended.
            self._note_end()
        deployment = self._deployer.store.deployment
        serving = self._deployer.engine.serving()
        now = time.monotonic()
        if deployment is None:
            return
        if now >= self._next_beat:
            self._deployments.beat(self._server, deployment, serving.checkpoint)
            self._next_beat = now + _BEAT_SECONDS
        if working:
            return
        request = self._deployments.claim(deployment, self._server)
        if request is not None:
            self._begin(lambda: self._answer(request))
        elif now >= self._next_follow and self._deployer.is_behind():
            self._begin(self._follow)

    def _is_working(self) -> bool:
        return self._work is not None and self._work.is_alive()

    def _note_end(self) -> None:
        """Writes down how the last request ended; what cannot be written is written later."""
        if self._ended is None:
            return
        request, reason = self._ended
        if not self._deployments.finish(request, self._server, reason):
            _log.warning("%s had been noted already, or another server has it by now.", request)
        self._ended = None

    def _begin(self, work: Callable[[], None]) -> None:
        """Works beside the thread that says that the server lives: a swap can take long."""
        self._work = threading.Thread(target=work, name="activation", daemon=True)
        self._work.start()

    def _answer(self, request: DeploymentRequest) -> None:
        reason = None
        try:
            actor = Actor(request.requested_by)
            self._deployer.activate(request.checkpoint, actor=actor)
        except (ServerError, PurifierError) as error:
            reason = error.message
            _log.warning("%s: %s was not activated. %s", request.id, request.checkpoint, reason)
        except Exception:
            reason = "The server failed; its log says why."
            _log.exception("%s: %s was not activated.", request.id, request.checkpoint)
        # Written by the watching thread, which goes on trying while the database is away.
        self._ended = request.id, reason

    def _follow(self) -> None:
        try:
            self._deployer.follow()
            return
        except (ServerError, PurifierError) as error:
            _log.error("The active checkpoint cannot be served: %s", error.message)
        except Exception:
            _log.exception("The active checkpoint cannot be served.")
        self._next_follow = time.monotonic() + _AGAIN_SECONDS
