"""The headers of a tar: bounded and counted, whatever they say of themselves."""

from __future__ import annotations

import gzip
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from server.config import UploadLimits
from server.errors import ArchiveRefused, ArchiveTooLarge
from server.security import archive as archive_module
from tests.support.archives import LIMITS, NOISE, tarred, tgz, unpack


def test_a_header_as_large_as_a_file_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1_900_000
    limits = replace(LIMITS, ratio=10_000)
    with pytest.raises(ArchiveRefused, match="too large headers"):
        unpack(tmp_path, gzip.compress(tarred({"x": info})), limits)


def extended(kind: bytes, content: bytes) -> bytes:
    """An extended header of a tar, as it stands before the member that it speaks of."""
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def record(key: str, value: str) -> bytes:
    """One entry of a pax header."""
    rest = f" {key}={value}\n".encode()
    length = len(rest)
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


class Counted(gzip.GzipFile):
    """Counts what it unzips, also what is skipped."""

    furthest = 0

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        Counted.furthest = max(Counted.furthest, self.tell())
        return content


LARGE_HEADER = record("comment", "x" * 1_000_000)
FULL_HEADER = record("comment", "x" * 60_000)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (tarfile.XHDTYPE, LARGE_HEADER),
        (tarfile.XHDTYPE, FULL_HEADER),
        (tarfile.XHDTYPE, record("comment", "x")),
        (tarfile.XGLTYPE, FULL_HEADER),
        (tarfile.SOLARIS_XHDTYPE, FULL_HEADER),
        (tarfile.GNUTYPE_LONGNAME, b"n" * 60_000),
        (tarfile.GNUTYPE_LONGLINK, b"n" * 60_000),
    ],
    ids=["large pax", "full pax", "small pax", "global", "solaris", "name", "link"],
)
def test_a_chain_of_headers_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes, content: bytes
) -> None:
    """Two hundred of them before a member of two bytes, whose size says nothing of them."""
    monkeypatch.setattr(Counted, "furthest", 0)
    monkeypatch.setattr(archive_module.gzip, "GzipFile", Counted)  # type: ignore[attr-defined]
    archive = gzip.compress(extended(kind, content) * 200 + tarred({"data.json": b"[]"}))
    limits = replace(UploadLimits(), ratio=10_000)
    with pytest.raises(ArchiveRefused, match="too many or too large headers"):
        unpack(tmp_path, archive, limits)
    assert Counted.furthest < 1_000_000


def test_a_chain_of_sparse_headers_is_not_followed(tmp_path: Path) -> None:
    info = tarfile.TarInfo("sparse")
    info.type = tarfile.GNUTYPE_SPARSE
    first = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    first[482] = 1  # more of them follow
    first[148:156] = b" " * 8
    first[148:156] = f"{sum(first):06o}\0 ".encode()
    more = bytes(504) + b"\1" + bytes(7)
    with pytest.raises(ArchiveRefused, match="too many or too large headers"):
        unpack(tmp_path, gzip.compress(bytes(first) + more * 2_000), UploadLimits())


def test_headers_count_as_content_does(tmp_path: Path) -> None:
    """Every member is empty, and has as much before it as it may have."""
    one = extended(tarfile.XHDTYPE, FULL_HEADER) * 5
    members = [one + tarfile.TarInfo(str(number)).tobuf() for number in range(10)]
    limits = replace(LIMITS, ratio=1_000, total_bytes=1_500_000)
    with pytest.raises(ArchiveTooLarge):
        unpack(tmp_path, gzip.compress(b"".join(members) + bytes(10_240)), limits)


def test_what_is_skipped_counts_as_content_does(tmp_path: Path) -> None:
    litter = {f"__MACOSX/{number}": bytes(400_000) for number in range(10)}
    with pytest.raises(ArchiveTooLarge):
        unpack(tmp_path, tgz({"data.json": b"[]"} | litter))


@pytest.mark.parametrize("size", ["-1", "-1024", "-100000", "9" * 30, "9" * 5_000])
def test_a_size_that_leads_back_is_refused(tmp_path: Path, size: str) -> None:
    header = extended(tarfile.XHDTYPE, record("size", size))
    content = tarred({"a": NOISE, "b": NOISE})
    with pytest.raises((ArchiveRefused, ArchiveTooLarge)):
        unpack(tmp_path, gzip.compress(header + content))


def test_what_a_global_header_says_is_not_kept(tmp_path: Path) -> None:
    """As archives of git begin with one; more of them must not fill the memory."""
    comment = extended(tarfile.XGLTYPE, record("comment", "0123456789abcdef" * 4))
    name = extended(tarfile.XHDTYPE, record("path", "images/0.png"))
    content = comment + tarred({"data.json": b"[]"})[:1_024] + name + tarred({"x": NOISE})
    assert unpack(tmp_path, content) == {"data.json": b"[]", "images/0.png": NOISE}


def test_digits_that_old_readers_take_long_for_are_refused(tmp_path: Path) -> None:
    header = extended(tarfile.XHDTYPE, b"1" * 60_000)
    with pytest.raises(ArchiveRefused, match="too large headers"):
        unpack(tmp_path, header + tarred({"data.json": b"[]"}))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_are_unpacked(tmp_path: Path, format: int) -> None:
    members = {"/".join(["deep" * 30] * 3) + f"/{number}.png": b"x" for number in range(3)}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_700_000_000.123456789
            archive.addfile(info, io.BytesIO(content))
    limits = replace(LIMITS, name_bytes=1_000)
    assert unpack(tmp_path, gzip.compress(file.getvalue()), limits) == members
