"""`client.files`: data sets on the server, and what jobs have made."""

from __future__ import annotations

from clients import _file_calls as calls
from clients._file_calls import FileLike
from clients._transport import AsyncTransport, Transport
from server.schemas.files import DataSetList, FileDeleted, FileList, FileObject, Purpose


class Files:
    """Uploads data sets; lists, gives and deletes files."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def upload(
        self, file: FileLike, *, filename: str | None = None, purpose: Purpose = "fine-tune"
    ) -> FileObject:
        """Uploads a data set; a file is read piece by piece while it is sent.

        Args:
            file: A label file (JSON, JSON lines, parquet), or a zip or tar archive of one and its
                images: a path, the bytes, or a file open for reading in binary mode.
            filename: What the server shall call it; the file's own name by default.
            purpose: What it is for.

        Raises:
            InvalidInput: If it cannot be read.
            StatusError: If the server refuses it.
            ConnectionFailed: If no answer comes.
        """
        with calls.opened(file, filename, purpose) as upload:
            return self._transport.run(calls.create(upload))

    def list(self, *, after: str | None = None, limit: int | None = None) -> FileList:
        """A page of files, newest first.

        Args:
            after: Id of the last one of the page before.
            limit: Most files on it; 100 by default.
        """
        return self._transport.run(calls.page(after, limit))

    def get(self, file_id: str) -> FileObject:
        """One file."""
        return self._transport.run(calls.get(file_id))

    def content(self, file_id: str) -> bytes:
        """What is in a file, such as one of a job's `result_files`; held in memory as a whole.

        What was uploaded as an archive comes back as a tar of its members.
        """
        return self._transport.run(calls.content(file_id))

    def delete(self, file_id: str) -> FileDeleted:
        """Removes a file that no unfinished job needs."""
        return self._transport.run(calls.delete(file_id))

    def datasets(self) -> DataSetList:
        """The data sets that the server has besides uploads; jobs name them by `id` as well."""
        return self._transport.run(calls.datasets())


class AsyncFiles:
    """Uploads data sets; lists, gives and deletes files."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def upload(
        self, file: FileLike, *, filename: str | None = None, purpose: Purpose = "fine-tune"
    ) -> FileObject:
        """Uploads a data set; a file is read piece by piece while it is sent.

        Args:
            file: A label file (JSON, JSON lines, parquet), or a zip or tar archive of one and its
                images: a path, the bytes, or a file open for reading in binary mode.
            filename: What the server shall call it; the file's own name by default.
            purpose: What it is for.

        Raises:
            InvalidInput: If it cannot be read.
            StatusError: If the server refuses it.
            ConnectionFailed: If no answer comes.
        """
        with calls.opened(file, filename, purpose) as upload:
            return await self._transport.run(calls.create(upload))

    async def list(self, *, after: str | None = None, limit: int | None = None) -> FileList:
        """A page of files, newest first.

        Args:
            after: Id of the last one of the page before.
            limit: Most files on it; 100 by default.
        """
        return await self._transport.run(calls.page(after, limit))

    async def get(self, file_id: str) -> FileObject:
        """One file."""
        return await self._transport.run(calls.get(file_id))

    async def content(self, file_id: str) -> bytes:
        """What is in a file, such as one of a job's `result_files`; held in memory as a whole.

        What was uploaded as an archive comes back as a tar of its members.
        """
        return await self._transport.run(calls.content(file_id))

    async def delete(self, file_id: str) -> FileDeleted:
        """Removes a file that no unfinished job needs."""
        return await self._transport.run(calls.delete(file_id))

    async def datasets(self) -> DataSetList:
        """The data sets that the server has besides uploads; jobs name them by `id` as well."""
        return await self._transport.run(calls.datasets())
