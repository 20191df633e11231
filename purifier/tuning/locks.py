"""Who may train in a work folder: one training at a time, and none whose supervisor is gone.

Locks are the operating system's, so they end with their process, however it dies.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from purifier.errors import PurifierError

SUPERVISOR_FILE = "supervisor.lock"
STOP_FILE = "stop"
RUN_VARIABLE = "DISP_TUNING_RUN"
"""Environment variable by which a supervisor tells its processes its name."""

_WAIT = 600.0


@contextmanager
def hold(
    path: Path, *, wanted: bool = True, content: str = "", wait: float = _WAIT
) -> Iterator[None]:
    """Holds a lock.

    Args:
        path: The lock file; created, and never removed.
        wanted: Whether this process takes part at all.
        content: Written into the file once the lock is held.
        wait: Seconds that another holder is waited for.

    Raises:
        PurifierError: If another process holds it for longer.
    """
    if not wanted:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        limit = time.monotonic() + wait
        while not _lock(file):
            if time.monotonic() > limit:
                raise PurifierError(
                    f"Another training works in {path.parent.name}; wait for it or stop it."
                )
            time.sleep(0.05)
        file.truncate(0)
        file.write(content)
        file.flush()
        yield


def orphaned(work: Path) -> bool:
    """Whether this process was asked to stop by its supervisor, or has lost it."""
    name = os.environ.get(RUN_VARIABLE)
    if name is None:
        return False
    path = work / SUPERVISOR_FILE
    if (work / STOP_FILE).exists() or not path.is_file():
        return True
    with path.open("r+") as file:
        return file.read() != name or _lock(file)


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
