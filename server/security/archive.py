"""The one place that unpacks archives from outside: zip, tar and tar.gz, everything bounded.

What an archive says about itself is not believed: names, sizes and counts are checked before a
member is written, and bytes are counted while it is. Regular files and folders only. An archive
that is refused leaves nothing behind.
"""

from __future__ import annotations

import gzip
import logging
import os
import re
import shutil
import stat
import tarfile
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast

from server.config import UploadLimits
from server.errors import ArchiveRefused, ArchiveTooLarge
from server.security.tar_stream import LONGEST_READ, TarStream

ArchiveKind = Literal["zip", "tar", "tar.gz"]

_log = logging.getLogger("disp.uploads")

_CHUNK = LONGEST_READ
_HEADER_BYTES = 1 << 20
_DIRECTORY_ENTRY_BYTES = 192
_TAR_OVERHEAD = 1 << 20
"""Bytes that a tar may have above the limit of its content, for headers and padding."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")
_DRIVE = re.compile(r"[A-Za-z]:")
_LITTER = frozenset({"__MACOSX", ".DS_Store", "Thumbs.db"})
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    gzip.BadGzipFile,
    EOFError,
)
"""What the standard library raises on archives that are cut off or damaged."""
_PERHAPS_DAMAGE = (ValueError, OverflowError, RuntimeError)
"""What it also raises on damaged ones, and for other reasons: the log says where."""
_TEXT = 200
_PLACES = 4


@dataclass(frozen=True)
class Extracted:
    """What was unpacked.

    Attributes:
        files: Files written.
        bytes: Their bytes together.
    """

    files: int
    bytes: int


def archive_kind(file: Path) -> ArchiveKind | None:
    """Tells an archive by its first bytes; None is something else."""
    with file.open("rb") as stream:
        head = stream.read(512)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if head[:2] == b"\x1f\x8b":
        return "tar.gz"
    return "tar" if head[257:262] == b"ustar" else None


def extract(archive: Path, folder: Path, limits: UploadLimits) -> Extracted:
    """Unpacks an archive into a new folder, whole or not at all.

    Args:
        archive: The file; its kind is told by `archive_kind`.
        folder: Where to; it must not exist and its parent must.
        limits: What an archive may hold.

    Raises:
        ArchiveRefused: If it is damaged, or a member is no plain file or has a bad name.
        ArchiveTooLarge: If it has more members or bytes than are allowed.
        OSError: If the disk is full or cannot be written.
    """
    kind = archive_kind(archive)
    if kind is None:
        raise ArchiveRefused("The file is not a zip, tar or tar.gz archive.", param="file")
    folder.mkdir()
    try:
        writer = _Writer(folder, limits, archive.stat().st_size)
        with archive.open("rb") as stream:
            if kind == "zip":
                _extract_zip(stream, writer, limits)
            else:
                _extract_tar(stream, writer, zipped=kind == "tar.gz")
        return Extracted(writer.files, writer.bytes)
    except BaseException:
        shutil.rmtree(folder)
        raise


@contextmanager
def _reading() -> Iterator[None]:
    """Around calls of the standard library: what it cannot read is a damaged archive.

    Nothing else belongs inside, or a fault of this program would be taken for one of the archive.

    Raises:
        ArchiveRefused: If the library says that the archive is damaged.
    """
    try:
        yield
    except _DAMAGE as error:
        _log.info("An archive is refused as damaged: %s", _described(error))
        raise _damaged() from None
    except _PERHAPS_DAMAGE as error:
        _log.warning(
            "An archive is refused as damaged: %s, at %s",
            _described(error),
            ", ".join(
                f"{Path(place.filename).name}:{place.lineno} in {place.name}"
                for place in traceback.extract_tb(error.__traceback__)[-_PLACES:]
            ),
        )
        raise _damaged() from None


def _described(error: Exception) -> str:
    """Kind and message of an error, in one line; the message may hold names of the archive."""
    return f"{type(error).__name__} {str(error)[:_TEXT]!a}"


def _damaged() -> ArchiveRefused:
    return ArchiveRefused("The archive is truncated or damaged.", param="file")


class _Writer:
    """Writes members below a folder and counts what it writes."""

    def __init__(self, folder: Path, limits: UploadLimits, archive_bytes: int) -> None:
        self._folder = folder
        self._limits = limits
        self._members = 0
        self._most = min(
            limits.total_bytes, max(limits.ratio * archive_bytes, limits.ratio_free_bytes)
        )
        self.files = 0
        self.bytes = 0

    def announce(self, size: int) -> None:
        """Counts a member before it is looked at."""
        self._members += 1
        if self._members > self._limits.members:
            raise ArchiveTooLarge(
                f"An archive may have at most {self._limits.members:,} members.", param="file"
            )
        self.check(self.bytes + size)

    def make_folder(self, name: str) -> None:
        path = self._place(name, folder=True)
        if path is not None:
            self._make(path)

    def write(self, name: str, source: IO[bytes]) -> None:
        path = self._place(name)
        if path is None:
            return
        self._make(path.parent)
        try:
            with path.open("xb") as out:
                while chunk := _read(source):
                    self.bytes += len(chunk)
                    self.check(self.bytes)
                    out.write(chunk)
        except (FileExistsError, IsADirectoryError):
            raise ArchiveRefused("The archive has two members of one name.", param="file") from None
        self.files += 1

    def check(self, total: int) -> None:
        """Refuses an archive that unpacks to so many bytes, if they are too many."""
        if total > self._most:
            raise ArchiveTooLarge(
                f"An archive may unpack to at most {self._limits.total_bytes:,} bytes and to "
                f"{self._limits.ratio} times its own size.",
                param="file",
            )

    def _make(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ArchiveRefused("The archive has two members of one name.", param="file") from None

    def _place(self, name: str, *, folder: bool = False) -> Path | None:
        """Where a member goes; None for litter of a desktop system and for the root itself."""
        parts = _parts(name, self._limits)
        if not parts and not folder:
            raise _bad_name("are empty")
        if not parts or not _LITTER.isdisjoint(parts) or parts[-1].startswith("._"):
            return None
        return self._folder.joinpath(*parts)


def _read(source: IO[bytes]) -> bytes:
    with _reading():
        return source.read(_CHUNK)


def _parts(name: str, limits: UploadLimits) -> tuple[str, ...]:
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise _bad_name("are not UTF-8") from None
    if len(encoded) > limits.name_bytes:
        raise _bad_name(f"are longer than {limits.name_bytes} bytes")
    if _CONTROL.search(name):
        raise _bad_name("have control characters or backslashes")
    if name.startswith("/") or _DRIVE.match(name):
        raise _bad_name("are absolute")
    parts = PurePosixPath(name).parts
    if ".." in parts:
        raise _bad_name("lead out of it by ..")
    if any(len(part.encode()) > 255 for part in parts):
        raise _bad_name("have a part of more than 255 bytes")
    if len(parts) > limits.depth:
        raise _bad_name(f"are more than {limits.depth} folders deep")
    return parts


def _bad_name(what: str) -> ArchiveRefused:
    return ArchiveRefused(f"The archive has members whose names {what}.", param="file")


def _extract_zip(stream: IO[bytes], writer: _Writer, limits: UploadLimits) -> None:
    directory = max(_HEADER_BYTES, _DIRECTORY_ENTRY_BYTES * limits.members)
    with _reading():
        archive = zipfile.ZipFile(_bounded(stream, directory))
    with archive:
        for member in archive.infolist():
            writer.announce(member.file_size)
            mode = stat.S_IFMT(member.external_attr >> 16)
            if member.filename.endswith("/"):
                writer.make_folder(member.filename)
                continue
            if mode not in (0, stat.S_IFREG):
                raise _not_plain()
            if member.flag_bits & 0x1:
                raise ArchiveRefused("The archive is encrypted; send it plain.", param="file")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ArchiveRefused("Zip members must be stored or deflated.", param="file")
            with _reading():
                source = archive.open(member)
            with source:
                writer.write(member.filename, source)


def _extract_tar(stream: IO[bytes], writer: _Writer, *, zipped: bool) -> None:
    with _unzipped(stream, zipped) as plain:
        # What is skipped, and every header, counts as what is written does.
        file = TarStream(plain, lambda position: writer.check(position - _TAR_OVERHEAD))
        with _reading(), file.headers():
            archive = tarfile.TarFile(fileobj=cast("IO[bytes]", file))
        with archive:
            while (member := _next_member(archive, file)) is not None:
                writer.announce(member.size)
                if member.isdir():
                    writer.make_folder(member.name)
                    continue
                source = _content(archive, member) if member.isreg() else None
                if source is None or member.issparse():
                    raise _not_plain()
                with closing(source):
                    writer.write(member.name, source)
            with _reading():
                file.require_end()


def _next_member(archive: tarfile.TarFile, file: TarStream) -> tarfile.TarInfo | None:
    with _reading(), file.headers():
        member = archive.next()
    # The library keeps every header that it has read, and applies global ones to all members.
    archive.members.clear()  # type: ignore[attr-defined]
    archive.pax_headers.clear()  # type: ignore[attr-defined]
    return member


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes] | None:
    with _reading():
        return archive.extractfile(member)


def _not_plain() -> ArchiveRefused:
    return ArchiveRefused(
        "An archive may have plain files and folders only: no links, devices or sparse files.",
        param="file",
    )


@contextmanager
def _unzipped(stream: IO[bytes], zipped: bool) -> Iterator[IO[bytes]]:
    if not zipped:
        yield stream
        return
    with gzip.GzipFile(fileobj=stream, mode="rb") as plain:
        yield cast("IO[bytes]", plain)


def _bounded(stream: IO[bytes], most: int) -> IO[bytes]:
    return cast("IO[bytes]", _Bounded(stream, most))


class _Bounded:
    """A file that refuses to read much at once.

    The library reads the directory whole, as long as the archive says that it is.
    """

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self._stream = stream
        self._most = max(most, _CHUNK)

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(self._most + 1 if size < 0 else min(size, self._most + 1))
        if len(content) > self._most:
            raise EOFError
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET and offset < 0:
            raise EOFError
        return self._stream.seek(offset, whence)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
