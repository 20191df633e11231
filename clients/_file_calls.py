"""What can be asked about data sets: uploads, and those that the server has already."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import httpx

from clients._call import Call, Upload, failure, reader
from clients._exceptions import InvalidInput, UnexpectedResponse
from server.schemas.files import DataSetList, FileDeleted, FileList, FileObject, Purpose

FileLike = str | os.PathLike[str] | bytes | BinaryIO
"""A path, the bytes themselves, or a file that is open for reading in binary mode."""

_FILES = "/v1/files"


def create(upload: Upload) -> Call[FileObject]:
    """Sends a label file, or an archive of one and its images."""
    return Call("POST", _FILES, reader(FileObject), upload=upload)


def page(after: str | None, limit: int | None) -> Call[FileList]:
    return Call(
        "GET",
        _FILES,
        reader(FileList),
        query={"after": after, "limit": limit},
        repeatable=True,
    )


def get(file_id: str) -> Call[FileObject]:
    return Call("GET", _path(file_id), reader(FileObject), repeatable=True)


def content(file_id: str) -> Call[bytes]:
    """A file as the server has it; what came as an archive comes back as a tar."""

    def read(response: httpx.Response) -> bytes:
        if not response.is_success:
            raise failure(response)
        if "attachment" not in response.headers.get("content-disposition", ""):
            raise UnexpectedResponse(f"{response.url} did not answer with a file.")
        return response.content

    return Call("GET", f"{_path(file_id)}/content", read, repeatable=True)


def delete(file_id: str) -> Call[FileDeleted]:
    return Call("DELETE", _path(file_id), reader(FileDeleted))


def datasets() -> Call[DataSetList]:
    return Call("GET", "/v1/datasets", reader(DataSetList), repeatable=True)


@contextmanager
def opened(file: FileLike, filename: str | None, purpose: Purpose) -> Iterator[Upload]:
    """The file, open while it is sent; one that came open stays open.

    Raises:
        InvalidInput: If it cannot be read.
    """
    fields = {"purpose": purpose}
    if isinstance(file, bytes):
        yield Upload(filename or "data", io.BytesIO(file), fields)
        return
    if not isinstance(file, (str, os.PathLike)):
        named = getattr(file, "name", None)
        own = Path(named).name if isinstance(named, str) else "data"
        yield Upload(filename or own, file, fields)
        return
    path = Path(file)
    if path.is_dir():
        raise InvalidInput(
            f"{str(path)!r} is a folder: pack it, labels and images together, as a .zip or .tar.gz."
        )
    try:
        content = path.open("rb")
    except (OSError, ValueError):
        raise InvalidInput(f"The file {str(path)!r} cannot be read.") from None
    with content:
        yield Upload(filename or path.name, content, fields)


def _path(file_id: str) -> str:
    return f"{_FILES}/{quote(file_id, safe='')}"
