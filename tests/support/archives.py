"""Small archives of every kind, and what becomes of them when they are unpacked."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from server.config import UploadLimits
from server.errors import ServerError
from server.security.archive import extract

LIMITS = UploadLimits(
    members=20, total_bytes=2_000_000, ratio=10, ratio_free_bytes=500_000, depth=4, name_bytes=300
)
NOISE = random.Random(0).randbytes(20_000)
CONTENT = {"data.json": b"[]", "images/0.png": NOISE, "images/deep/1.png": b"\x00" * 3000}

Make = Callable[..., bytes]


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return file.getvalue()


def tarred(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content, io.BytesIO(bytes(content.size)))
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def tgz(members: dict[str, bytes]) -> bytes:
    return gzip.compress(tarred(dict(members)))


MAKERS: dict[str, Make] = {"zip": zipped, "tar": tarred, "tar.gz": tgz}


def unpack(tmp_path: Path, content: bytes, limits: UploadLimits = LIMITS) -> dict[str, bytes]:
    """The files by name; a refusal must leave nothing behind."""
    archive = tmp_path / "upload"
    archive.write_bytes(content)
    folder = tmp_path / "out"
    try:
        extracted = extract(archive, folder, limits)
    except ServerError:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["upload"]
        raise
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert extracted.files == len(found)
    assert extracted.bytes == sum(map(len, found.values()))
    assert not any(path.stat().st_mode & 0o111 for path in folder.rglob("*") if path.is_file())
    return found
