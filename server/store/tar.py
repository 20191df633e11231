"""A folder as a tar archive, made while it is sent."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

_CHUNK = 1 << 20


def tar_size(folder: Path) -> int:
    """Bytes of what `tar_chunks` gives."""
    total = sum(len(_head(folder, path)) + _padded(path.stat().st_size) for path in _files(folder))
    ends = total + 2 * tarfile.BLOCKSIZE
    return ends + -ends % tarfile.RECORDSIZE


def tar_chunks(folder: Path) -> Iterator[bytes]:
    """The archive of a folder's files: equal for equal contents, whatever their times and owners.

    Raises:
        OSError: If a file cannot be read, or has another size than when it was begun.
    """
    sent = 0
    for path in _files(folder):
        head, size = _head(folder, path), path.stat().st_size
        yield head
        left = size
        with path.open("rb") as file:
            while left and (chunk := file.read(min(_CHUNK, left))):
                left -= len(chunk)
                yield chunk
        if left:
            raise OSError(f"{path.name} became shorter while it was sent.")
        yield b"\0" * (_padded(size) - size)
        sent += len(head) + _padded(size)
    yield b"\0" * (tar_size(folder) - sent)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _head(folder: Path, path: Path) -> bytes:
    info = tarfile.TarInfo(path.relative_to(folder).as_posix())
    info.size = path.stat().st_size
    return info.tobuf(tarfile.PAX_FORMAT)


def _padded(size: int) -> int:
    return size + -size % tarfile.BLOCKSIZE
