"""Archives from outside are unpacked whole, or refused and leave nothing behind."""

from __future__ import annotations

import io
import logging
import os
import random
import stat
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from server.errors import ArchiveRefused, ArchiveTooLarge, ServerError
from server.security import archive as archive_module
from server.security.archive import archive_kind
from tests.support.archives import CONTENT, LIMITS, MAKERS, NOISE, tarred, unpack, zipped


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
