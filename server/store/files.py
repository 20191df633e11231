"""Files: uploaded data sets, each with a folder of its own, and what jobs have made.

An upload is a row and a folder; the folder is complete before the row is written, so what is
listed can be read. What a killed server left half written is removed a day later. The results
of jobs stay in the shared store.
"""

from __future__ import annotations

import errno
import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Select, select

from purifier.data.dataset import BadRow, open_dataset
from purifier.data.encoding import foreign_encoding
from purifier.errors import DataError
from server.config import UploadLimits
from server.errors import (
    BodyTooLarge,
    DataFileInUse,
    DataFileNotFound,
    InvalidRequest,
    StorageFull,
    UnsupportedFile,
    UnusableDataSet,
)
from server.security.archive import archive_kind, extract
from server.store.blobs import BlobStore
from server.store.database import Database
from server.store.file_tables import RESULT, FileRecord, files, purified_folder
from server.store.job_tables import jobs
from server.store.jobs import FINISHED
from server.store.result_files import ResultFiles
from server.store.upload_copies import remove_upload, send_upload

__all__ = ["FileRecord", "FileStore", "Incoming", "Order"]

Order = Literal["asc", "desc"]

_INCOMING = ".incoming-"
_UNPACKED = "unpacked"
_STALE_SECONDS = 86_400
_NESTING = 4
_CHECKED_ROWS = 64


class FileStore:
    """Takes uploads; lists, gives and deletes files.

    Args:
        database: The service's database.
        folder: Holds one folder for every upload; servers and workers share it.
        limits: What an upload may be.
        store: Where jobs put their results.
    """

    def __init__(
        self, database: Database, folder: Path, limits: UploadLimits, store: BlobStore
    ) -> None:
        self._database = database
        self._results = ResultFiles(database, store)
        self._store = store
        self._folder = folder
        self._limits = limits
        folder.mkdir(parents=True, exist_ok=True)
        self._sweep()

    @contextmanager
    def receive(self) -> Iterator[Incoming]:
        """A place for an upload; what was not handed to `add` is removed at the end.

        Raises:
            StorageFull: If the disk has no room, also from inside.
        """
        folder = self._folder / f"{_INCOMING}{secrets.token_hex(8)}"
        try:
            folder.mkdir(mode=0o700)
            with Incoming(folder, self._limits.file_bytes) as incoming:
                yield incoming
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull from None
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def add(
        self, incoming: Incoming, *, filename: str, purpose: str, key_id: str | None
    ) -> FileRecord:
        """Keeps an upload: unpacks an archive, checks that it holds a data set, lists it.

        Raises:
            ArchiveRefused: If it is an archive with what is not unpacked.
            ArchiveTooLarge: If it unpacks to too much.
            UnsupportedFile: If it is neither an archive nor a label file.
            UnusableDataSet: If no data set can be read from it.
        """
        size, digest = incoming.finish()
        content = self._unpack(incoming, filename)
        file_id = f"file-{secrets.token_hex(12)}"
        send_upload(self._store, file_id, incoming.folder, self._folder)
        row = files.insert().values(
            id=file_id,
            created_at=time.time(),
            filename=filename,
            purpose=purpose,
            bytes=size,
            sha256=digest,
            key_id=key_id,
            content=content,
        )
        perhaps_listed = False
        try:
            incoming.folder.rename(self._folder / file_id)
            with self._database.transaction() as connection:
                record = _record(connection.execute(row.returning(files)).one())
                perhaps_listed = True
        except BaseException:
            # What a commit of unknown outcome may have listed is left to `_sweep`.
            if not perhaps_listed:
                self._remove(file_id)
            raise
        return record

    def get(self, file_id: str, *, owner: str | None = None) -> FileRecord:
        """One file.

        Args:
            file_id: Its id.
            owner: Key that must have sent it, or asked for its job; None takes anybody's.

        Raises:
            DataFileNotFound: If there is none of this id.
        """
        query = _of(owner, select(files).where(files.c.id == file_id))
        with self._database.reading() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise DataFileNotFound
        return _record(row)

    def list(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        order: Order = "desc",
        purpose: str | None = None,
        owner: str | None = None,
    ) -> list[FileRecord]:
        """Files, newest first unless `order` is `asc`.

        Args:
            after: Id of the last file of the page before.
            limit: Most files returned.
            order: `desc` or `asc` by creation.
            purpose: Only those for this.
            owner: Only those of this key; None lists anybody's.

        Raises:
            DataFileNotFound: If there is no file `after`.
        """
        newest_first = order == "desc"
        query = _of(owner, select(files)).limit(limit)
        query = query.order_by(files.c.number.desc() if newest_first else files.c.number)
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        if after is not None:
            last = self.get(after, owner=owner).number
            query = query.where(files.c.number < last if newest_first else files.c.number > last)
        with self._database.reading() as connection:
            return [_record(row) for row in connection.execute(query)]

    def data(self, file_id: str, *, owner: str | None = None) -> Path:
        """What `purifier.data.dataset.open_dataset` opens for an upload.

        Raises:
            DataFileNotFound: If there is none of this id.
            UnusableDataSet: If it is a job's result.
        """
        record = self.get(file_id, owner=owner)
        if record.purpose == RESULT:
            raise UnusableDataSet(
                "A result of a job does not hold the images that it names: download it and "
                "upload it together with them."
            )
        return _data_root(self._folder / record.id / record.content)

    def content(self, record: FileRecord) -> Path:
        """A file of this machine with the content; a folder for what came as an archive.

        Raises:
            DataFileNotFound: If it has been removed meanwhile.
        """
        if record.purpose == RESULT:
            return self._results.path(record)
        path = self._folder / record.id / record.content
        if not path.exists():
            raise DataFileNotFound
        return path

    def delete(self, file_id: str, *, owner: str | None = None) -> None:
        """Forgets a file and removes its content.

        Raises:
            DataFileNotFound: If there is none of this id.
            DataFileInUse: If a job that has not finished reads it.
        """
        record = self.get(file_id, owner=owner)
        with self._database.transaction() as connection:
            unfinished = connection.execute(
                select(jobs.c.id, jobs.c.spec).where(jobs.c.status.not_in(FINISHED))
            )
            for job_id, spec in unfinished:
                asked = json.loads(spec)
                used = (asked["training_file"], asked.get("validation_file"))
                if file_id in used or record.content == purified_folder(job_id):
                    raise DataFileInUse
            gone = connection.execute(files.delete().where(files.c.id == file_id))
            if gone.rowcount == 0:
                raise DataFileNotFound
        if record.purpose == RESULT:
            self._results.remove(record)
        else:
            self._remove(file_id)

    def _remove(self, file_id: str) -> None:
        """Removes the content of an upload, here and where the workers share it."""
        shutil.rmtree(self._folder / file_id, ignore_errors=True)
        remove_upload(self._store, file_id)

    def _unpack(self, incoming: Incoming, filename: str) -> str:
        if archive_kind(incoming.path) is None:
            content = f"data{_suffix(incoming.path, filename)}"
            incoming.path.rename(incoming.folder / content)
        else:
            content = _UNPACKED
            extract(incoming.path, incoming.folder / content, self._limits)
            incoming.path.unlink()
        _check_rows(_data_root(incoming.folder / content))
        return content

    def _sweep(self) -> None:
        """Removes what was begun a day ago and never listed."""
        with self._database.reading() as connection:
            known = set(connection.execute(select(files.c.id)).scalars())
        for path in self._folder.iterdir():
            stale = path.stat().st_mtime < time.time() - _STALE_SECONDS
            ours = path.name.startswith((_INCOMING, "file-"))
            if not (stale and ours) or path.name in known:
                continue
            if path.is_dir():
                with suppress(OSError):  # the next start tries again
                    self._remove(path.name)
            else:
                path.unlink(missing_ok=True)


class Incoming:
    """An upload on its way: its bytes on disk, counted and hashed.

    Attributes:
        folder: Its own folder.
        path: The bytes as they were sent.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder = folder
        self.path = folder / "upload"
        self._most = most
        self._size = 0
        self._hash = hashlib.sha256()
        self._file = self.path.open("xb")

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, chunk: bytes) -> None:
        """Adds bytes.

        Raises:
            BodyTooLarge: If there are more than an upload may have.
        """
        self._size += len(chunk)
        if self._size > self._most:
            raise BodyTooLarge(f"A file may have at most {self._most:,} bytes.", param="file")
        self._hash.update(chunk)
        self._file.write(chunk)

    def finish(self) -> tuple[int, str]:
        """Ends the upload; returns its bytes and their SHA-256 in hex.

        Raises:
            InvalidRequest: If it is empty.
        """
        if self._size == 0:
            raise InvalidRequest("file is empty.", param="file")
        self._file.close()
        return self._size, self._hash.hexdigest()


def _suffix(path: Path, filename: str) -> str:
    """Which label file it is, by its content; the name decides between JSON and JSON lines."""
    with path.open("rb") as stream:
        head = stream.read(1_024)
    if head[:4] == b"PAR1":
        return ".parquet"
    encoding = foreign_encoding(head)
    if encoding is not None:
        raise UnsupportedFile(f"The file is {encoding} text; save it as UTF-8.", param="file")
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first == b"[":
        return ".json"
    if first == b"{":
        return ".json" if filename.lower().endswith(".json") else ".jsonl"
    raise UnsupportedFile(param="file")


def _check_rows(path: Path) -> None:
    """Refuses what no row can be read from; a job counts the bad ones among good ones."""
    try:
        rows = list(open_dataset(path).rows(0, _CHECKED_ROWS))
    except DataError as error:
        raise UnusableDataSet(error.message, param="file") from None
    bad = [row for row in rows if isinstance(row, BadRow)]
    if len(bad) == len(rows):
        raise UnusableDataSet(f"No row can be used. {bad[0].message}", param="file")


def _data_root(content: Path) -> Path:
    """The label file, or the folder inside the folders that archives like to wrap around it."""
    for _ in range(_NESTING):
        if not content.is_dir():
            break
        inside = list(content.iterdir())
        if len(inside) != 1 or not inside[0].is_dir():
            break
        content = inside[0]
    return content


def _of(owner: str | None, query: Select[Any]) -> Select[Any]:
    return query if owner is None else query.where(files.c.key_id == owner)


def _record(row: Any) -> FileRecord:
    return FileRecord(**row._asdict())
