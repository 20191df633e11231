"""Data folders that older versions of the service have made; see `tests.support.data_folder`."""

from __future__ import annotations

import tarfile
from pathlib import Path

import psycopg
from sqlalchemy import text, update
from sqlalchemy.engine import make_url

from server.jobs.service import JobService
from server.store.blobs import BlobStore
from server.store.checkpoint_tables import checkpoints
from server.store.database import open_database
from server.store.home import Home
from server.store.jobs import JobRecord

FOLDERS = sorted((Path(__file__).parents[1] / "server/store/folders").glob("*.tar.gz"))
SUCCEEDED, RUNNING = "the first", "the second"
"""Idempotency keys of the two jobs."""


class Folder:
    """The data folder of an older version, unpacked, with its database of either kind."""

    def __init__(self, place: Path, url: str | None) -> None:
        self.model = place / "model"
        self.home = Home.at(place / "home", url)
        self.database = open_database(self.home.database_url)
        self.store = BlobStore(self.home.root)
        self.service = JobService(self.database, self.store)
        # The checkpoints lie where the folder was made; this one was moved.
        for link in self.home.checkpoints.rglob("*"):
            if link.is_symlink():
                link.unlink()
                link.symlink_to(self.model, target_is_directory=True)
        with self.database.transaction() as connection:
            moved = update(checkpoints).where(checkpoints.c.base.is_(None))
            connection.execute(moved.values(path=str(self.model)))

    def job(self, idempotency_key: str) -> JobRecord:
        query = "SELECT id FROM jobs WHERE idempotency_key = :key"
        with self.database.reading() as connection:
            found = connection.execute(text(query), {"key": idempotency_key}).scalar_one()
        return self.service.get(str(found))


def unpacked(archive: Path, place: Path) -> Path:
    with tarfile.open(archive) as file:
        file.extractall(place, filter="fully_trusted")
    return place


def restored(sql: Path, url: str) -> None:
    """Fills an empty database with what `pg_dump` wrote."""
    address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address) as connection:
        connection.execute(sql.read_bytes())
