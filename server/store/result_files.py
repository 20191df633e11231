"""What jobs have made, as files that can be listed and downloaded."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import select

from server.errors import DataFileNotFound
from server.store.blobs import FOLDER_MANIFEST, BlobStore
from server.store.database import Database
from server.store.file_tables import RESULT, FileRecord, files, purified_folder
from server.store.outages import all_retried


@all_retried
class ResultFiles:
    """Lists the files of purified data sets, which stay in the shared store.

    Args:
        database: The service's database.
        store: What servers and workers share.
    """

    def __init__(self, database: Database, store: BlobStore) -> None:
        self._database = database
        self._store = store

    def register(self, job_id: str, key_id: str | None, hashes: Mapping[str, str]) -> None:
        """Lists the files of a job's purified data set; doing it again changes nothing.

        Args:
            job_id: The job.
            key_id: Who asked for it.
            hashes: SHA-256 of every file by its path in the folder.
        """
        folder = purified_folder(job_id)
        sizes = {name: self._store.size(f"{folder}/{name}") for name in hashes}
        with self._database.transaction() as connection:
            known = set(
                connection.execute(select(files.c.id).where(files.c.content == folder)).scalars()
            )
            for name, sha256 in sorted(hashes.items()):
                file_id = _id(folder, name)
                if file_id not in known:
                    connection.execute(
                        files.insert().values(
                            id=file_id,
                            created_at=time.time(),
                            filename=name,
                            purpose=RESULT,
                            bytes=sizes[name],
                            sha256=sha256,
                            key_id=key_id,
                            content=folder,
                        )
                    )

    def path(self, record: FileRecord) -> Path:
        """A result as a file of this machine.

        Raises:
            DataFileNotFound: If the store does not have it any more.
        """
        try:
            return self._store.local(f"{record.content}/{record.filename}")
        except FileNotFoundError:
            raise DataFileNotFound("The shared store does not have this file any more.") from None

    def remove(self, record: FileRecord) -> None:
        """Takes a result out of the store; its job, if resumed, makes it anew."""
        self._store.remove(f"{record.content}/{FOLDER_MANIFEST}")
        self._store.remove(f"{record.content}/{record.filename}")


def _id(folder: str, name: str) -> str:
    return f"file-{hashlib.sha256(f'{folder}/{name}'.encode()).hexdigest()[:24]}"
