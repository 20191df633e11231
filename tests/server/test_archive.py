"""Archives from outside are unpacked whole, or refused and leave nothing behind."""

from __future__ import annotations

import gzip
import io
import logging
import os
import random
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from server.config import UploadLimits
from server.errors import ArchiveRefused, ArchiveTooLarge, ServerError
from server.security import archive as archive_module
from server.security.archive import archive_kind, extract

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


@pytest.mark.parametrize("kind", MAKERS)
def test_an_archive_is_unpacked(tmp_path: Path, kind: str) -> None:
    content = MAKERS[kind](CONTENT)
    (tmp_path / "upload").write_bytes(content)
    assert archive_kind(tmp_path / "upload") == kind
    assert unpack(tmp_path, content) == CONTENT


@pytest.mark.parametrize("kind", MAKERS)
def test_litter_of_desktops_is_left_out(tmp_path: Path, kind: str) -> None:
    litter = {"__MACOSX/._data.json": b"x", "images/.DS_Store": b"x", "images/._0.png": b"x"}
    assert unpack(tmp_path, MAKERS[kind](CONTENT | litter)) == CONTENT


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    "name",
    [
        "../escape",
        "images/../../escape",
        "/etc/escape",
        "C:/escape",
        "images\\escape",
        "new\nline",
        "a/b/c/d/e",
        "n" * 256,
        "/".join(["n" * 150] * 3),
    ],
)
def test_bad_names_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    with pytest.raises(ArchiveRefused):
        unpack(tmp_path, MAKERS[kind]({"data.json": b"[]", name: b"x"}))


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
    ids=["symlink", "hardlink", "character", "block", "fifo"],
)
def test_tar_members_that_are_no_files_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "data.json"
    with pytest.raises(ArchiveRefused, match="links, devices"):
        unpack(tmp_path, tarred({"data.json": b"[]", "link": info}))


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_zip_members_that_are_no_files_are_refused(tmp_path: Path, mode: int) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (mode | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ArchiveRefused, match="links, devices"):
        unpack(tmp_path, file.getvalue())


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["data.json", "data.json/inside"])
def test_two_members_of_one_name_are_refused(tmp_path: Path, second: str) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.json", "[]")
        archive.writestr(second, "[1]")
    with pytest.raises(ArchiveRefused, match="two members"):
        unpack(tmp_path, file.getvalue())


@pytest.mark.parametrize("kind", MAKERS)
def test_too_many_members_are_refused(tmp_path: Path, kind: str) -> None:
    many = {f"{index}.png": b"x" for index in range(LIMITS.members + 1)}
    with pytest.raises(ArchiveTooLarge, match="at most 20 members"):
        unpack(tmp_path, MAKERS[kind](many))


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ArchiveTooLarge, match="10 times its own size"):
        unpack(tmp_path, MAKERS[kind]({"zeros": bytes(1_500_000)}))


@pytest.mark.parametrize("kind", MAKERS)
def test_too_many_bytes_are_refused(tmp_path: Path, kind: str) -> None:
    limits = replace(LIMITS, total_bytes=len(NOISE) * 2 - 1)
    with pytest.raises(ArchiveTooLarge):
        unpack(tmp_path, MAKERS[kind]({"a": NOISE, "b": NOISE}), limits)


def test_a_size_that_is_a_lie_does_not_help(tmp_path: Path) -> None:
    content = zipped({"zeros": bytes(1_500_000)})
    at = content.index(b"PK\x01\x02")
    lie = content[: at + 24] + struct.pack("<L", 10) + content[at + 28 :]
    with pytest.raises((ArchiveRefused, ArchiveTooLarge)):
        unpack(tmp_path, lie)


def test_a_zip_member_that_is_encrypted_is_refused(tmp_path: Path) -> None:
    content = zipped({"data.json": b"[]"})
    at = content.index(b"PK\x01\x02")
    flagged = content[: at + 8] + b"\x01" + content[at + 9 :]
    with pytest.raises(ArchiveRefused, match="encrypted"):
        unpack(tmp_path, flagged)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_of_zip_are_refused(tmp_path: Path, method: int) -> None:
    with pytest.raises(ArchiveRefused, match="stored or deflated"):
        unpack(tmp_path, zipped({"data.json": b"[]"}, method))


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


@pytest.mark.parametrize("kind", MAKERS)
def test_every_truncation_is_refused(tmp_path: Path, kind: str) -> None:
    content = MAKERS[kind]({"data.json": b"[]", "images/0.png": NOISE[:3000]})
    whole = content.rstrip(b"\x00") if kind == "tar" else content
    generator = random.Random(1)
    cuts = [*range(1, 40), *generator.sample(range(40, len(whole)), 80), len(whole) - 1]
    for cut in cuts:
        with pytest.raises((ArchiveRefused, ArchiveTooLarge)):
            unpack(tmp_path, whole[:cut])


@pytest.mark.parametrize("kind", MAKERS)
def test_damage_never_raises_anything_else(tmp_path: Path, kind: str) -> None:
    content = bytearray(MAKERS[kind]({"data.json": b"[]", "images/0.png": NOISE[:500]}))
    generator = random.Random(2)
    for _ in range(80):
        damaged = bytearray(content)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            found = unpack(tmp_path, bytes(damaged))
        except ServerError:
            continue
        assert all(not os.path.isabs(name) for name in found)
        for path in sorted((tmp_path / "out").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "out").rmdir()


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK", b"\x1f\x8b", b"PK\x05\x06"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ArchiveRefused):
        unpack(tmp_path, content)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("fault", [ValueError, RuntimeError, OverflowError, KeyError])
def test_a_fault_of_our_own_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fault: type[Exception]
) -> None:
    def broken(*_: object) -> None:
        raise fault("a fault of this program")

    monkeypatch.setattr(archive_module, "_parts", broken)
    with pytest.raises(fault, match="a fault of this program"):
        unpack(tmp_path, MAKERS[kind](CONTENT))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["upload"]


@pytest.mark.parametrize("kind", MAKERS)
def test_damage_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    with caplog.at_level(logging.INFO, "disp.uploads"), pytest.raises(ArchiveRefused):
        unpack(tmp_path, MAKERS[kind]({"data.json": NOISE})[:-12_000])
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert len(record.message) < 500


@pytest.mark.parametrize("fault", [ValueError, RuntimeError, NotImplementedError, RecursionError])
@pytest.mark.parametrize(
    ("kind", "call"),
    [("zip", "zipfile.ZipFile.open"), ("tar", "tarfile.TarFile.next")],
)
def test_what_a_library_may_have_said_for_another_reason_is_logged_with_its_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    call: str,
    fault: type[Exception],
) -> None:
    def library_call(*_: object, **__: object) -> None:
        raise fault("new\nline " + "x" * 100_000)

    content = MAKERS[kind](CONTENT)
    monkeypatch.setattr(call, library_call)
    with caplog.at_level(logging.INFO, "disp.uploads"), pytest.raises(ArchiveRefused):
        unpack(tmp_path, content)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert fault.__name__ in record.message
    assert "in library_call" in record.message
    assert "new\nline" not in record.message
    assert len(record.message) < 5000


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["", "."])
def test_a_file_without_a_name_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    with pytest.raises(ArchiveRefused, match="are empty"):
        unpack(tmp_path, MAKERS[kind]({"data.json": b"[]", name: b"x"}))


def test_a_tar_may_name_its_root(tmp_path: Path) -> None:
    info = tarfile.TarInfo("./")
    info.type = tarfile.DIRTYPE
    assert unpack(tmp_path, tarred({"./": info, "./data.json": b"[]"})) == {"data.json": b"[]"}
