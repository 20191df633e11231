"""Where the service keeps what it keeps: one folder, and one database inside it or elsewhere."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

DATA_DIR_VARIABLE = "DISP_DATA_DIR"
DEFAULT_DATA_DIR = Path("disp-data")


class HomeError(Exception):
    """The data folder cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Home:
    """The data folder of a service; servers and workers that share it share everything.

    Attributes:
        root: The folder, as an absolute path.
        url: Database URL; None keeps an SQLite file in the folder.
    """

    root: Path
    url: str | None = None

    @classmethod
    def at(cls, root: Path, url: str | None = None) -> Home:
        """A home whose folder is given as it was typed."""
        return cls(root.expanduser().resolve(), url)

    @property
    def database_url(self) -> str:
        return self.url or f"sqlite:///{self.root / 'disp.sqlite'}"

    @property
    def checkpoints(self) -> Path:
        """Staged checkpoints, one folder for every content."""
        return self.root / "checkpoints"

    @property
    def files(self) -> Path:
        """Uploads."""
        return self.root / "files"

    @property
    def uploads(self) -> Path:
        """Copies of uploads that another machine took."""
        return self.root / "cache" / "uploads"

    @property
    def jobs(self) -> Path:
        """Shards, resume state and reports, one folder for every job."""
        return self.root / "jobs"

    @property
    def scratch(self) -> Path:
        """Files of workers on their way to the store, one folder for every worker."""
        return self.root / "scratch"

    def create(self) -> Home:
        """Makes the folders that are missing, closed to other users.

        Raises:
            HomeError: If the folder cannot be written.
        """
        try:
            for folder in (self.root, self.checkpoints, self.files, self.jobs):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            writable = False
        else:
            writable = os.access(self.root, os.W_OK | os.X_OK)
        if not writable:
            raise HomeError(
                f"The data folder {self.root} cannot be written: give another one with --data-dir "
                f"or {DATA_DIR_VARIABLE}."
            )
        return self


def find_root(given: Path | None, *, demo: bool = False) -> Path:
    """The data folder to use.

    Args:
        given: From the command line; it goes before everything.
        demo: Whether the demo is served, which keeps its data out of the working directory.

    Returns:
        `given`, else `DISP_DATA_DIR`, else `./disp-data` or the demo's folder in the user's cache.
    """
    if given is not None:
        return given
    if named := os.environ.get(DATA_DIR_VARIABLE):
        return Path(named)
    return _cache_folder() / "demo" if demo else DEFAULT_DATA_DIR


def _cache_folder() -> Path:
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "disp-server"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "disp-server"
    return Path.home() / ".cache" / "disp-server"
