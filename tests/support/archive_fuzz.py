"""Random and damaged archives, and what has to hold for every one of them."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hypothesis import strategies as st

from server.config import UploadLimits
from server.errors import ArchiveRefused, ArchiveTooLarge
from server.security.archive import extract
from tests.support.fuzzing import Properties

LIMITS = UploadLimits(
    members=12, total_bytes=60_000, ratio=20, ratio_free_bytes=20_000, depth=4, name_bytes=200
)
_LONGEST_MESSAGE = 300
_KINDS = ("zip", "tar", "tar.gz")
_PAX_KEYS = [
    "path",
    "linkpath",
    "size",
    "mtime",
    "hdrcharset",
    "GNU.sparse.map",
    "GNU.sparse.size",
    "GNU.sparse.name",
    "GNU.sparse.major",
    "GNU.sparse.minor",
    "GNU.sparse.realsize",
]
_TAR_TYPES = (*(bytes([number]) for number in range(48, 56)), b"x", b"g", b"L", b"K", b"S", b"\0")


@dataclass(frozen=True)
class Member:
    """A member as an archive describes it, true or not."""

    name: str
    content: bytes
    type: bytes = tarfile.REGTYPE
    link: str = ""
    pax: tuple[tuple[str, str], ...] = ()
    mode: int = 0o644
    method: int = zipfile.ZIP_DEFLATED


def require_contained(content: bytes) -> None:
    """An archive is unpacked within its folder and its limits, or refused and leaves nothing."""
    unpack(content)


def require_whole(kind: str, members: dict[str, bytes]) -> None:
    """A sound archive is unpacked as it was packed."""
    found = unpack(packed(kind, [Member(*item) for item in members.items()]))
    assert found == members


def unpack(content: bytes) -> dict[str, bytes] | None:
    """What an archive unpacks to; None if it was refused. Asserts what always holds."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        archive, folder = root / "in" / "upload", root / "in" / "to" / "out"
        folder.parent.mkdir(parents=True)
        archive.write_bytes(content)
        found = None
        try:
            extracted = extract(archive, folder, LIMITS)
        except (ArchiveRefused, ArchiveTooLarge) as refusal:
            message = refusal.message
        else:
            message = ""
            found = files_of(folder)
            assert (extracted.files, extracted.bytes) == (len(found), sum(map(len, found.values())))
        assert (found is None) == bool(message)
        assert len(message) <= _LONGEST_MESSAGE
        assert folder.exists() == (not message)
        outside = {path for path in root.rglob("*") if folder not in path.parents}
        assert outside - {folder} == {root / "in", archive, folder.parent}
        assert archive.read_bytes() == content
        return found


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of an unpacked folder by name; asserts that they keep the limits."""
    paths = list(folder.rglob("*"))
    assert all(not path.is_symlink() and (path.is_dir() or path.is_file()) for path in paths)
    files = [path for path in paths if path.is_file()]
    assert all(path.stat().st_nlink == 1 for path in files)
    assert all(not path.stat().st_mode & 0o7111 for path in files)
    names = [path.relative_to(folder) for path in paths]
    assert all(len(name.parts) <= LIMITS.depth for name in names)
    assert all(len(bytes(name)) <= LIMITS.name_bytes for name in names)
    assert len(files) <= LIMITS.members
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    assert sum(map(len, found.values())) <= LIMITS.total_bytes
    return found


def packed(kind: str, members: list[Member]) -> bytes:
    """An archive of members, as far as the standard library writes them."""
    if kind == "zip":
        return _zipped(members)
    content = _tarred(members)
    return gzip.compress(content, 1, mtime=0) if kind == "tar.gz" else content


def _zipped(members: list[Member]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two members of one name
        with zipfile.ZipFile(file, "w") as archive:
            for member in members:
                info = zipfile.ZipInfo(member.name)
                info.external_attr = member.mode << 16
                archive.writestr(info, member.content, member.method)
    return file.getvalue()


def _tarred(members: list[Member]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type, info.linkname, info.mode = member.type, member.link, member.mode & 0o7777
            info.pax_headers = dict(member.pax)
            info.size = len(member.content)
            archive.addfile(info, io.BytesIO(member.content))
    return file.getvalue()


def with_damage(content: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    """Content with some places overwritten, removed, filled in or cut off."""
    damaged = bytearray(content)
    for how, place, piece in edits:
        at = place % (len(damaged) + 1)
        if how == "overwrite":
            damaged[at : at + len(piece)] = piece
        elif how == "insert":
            damaged[at:at] = piece
        elif how == "remove":
            del damaged[at : at + len(piece)]
        elif how == "repeat":
            damaged[at:at] = damaged[at : at + 512]
        else:
            del damaged[at:]
    return bytes(damaged)


def with_tar_fields(content: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """A tar with fields of its headers overwritten and their checksums made to fit."""
    damaged = bytearray(content)
    headers = [at for at in range(0, len(damaged) - 511, 512) if damaged[at + 257 : at + 262]]
    for number, place, piece in edits:
        at = headers[number % len(headers)] if headers else 0
        damaged[at + place : at + place + len(piece)] = piece
        header = damaged[at : at + 512]
        header[148:156] = b" " * 8
        damaged[at + 148 : at + 156] = b"%06o\0 " % sum(header)
    return bytes(damaged)


def with_zip_fields(content: bytes, edits: list[tuple[int, int, int, int]]) -> bytes:
    """A zip with numbers of its headers replaced."""
    damaged = bytearray(content)
    marks = (b"PK\x01\x02", b"PK\x05\x06", b"PK\x03\x04")
    for mark, place, width, value in edits:
        at = damaged.find(marks[mark % len(marks)])
        if at >= 0:
            number = struct.pack("<Q", value)[:width]
            damaged[at + 4 + place : at + 4 + place + width] = number
    return bytes(damaged)


_plain = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)
_paths = st.lists(_plain, min_size=1, max_size=LIMITS.depth).map("/".join)
_content = st.one_of(
    st.binary(max_size=200), st.integers(0, 30_000).map(bytes), st.binary(max_size=3)
)


def _is_tree(members: dict[str, bytes]) -> bool:
    """Whether no member is a file and a folder at once."""
    folders = {str(parent) for name in members for parent in PurePosixPath(name).parents}
    return folders.isdisjoint(members)


_sound = st.dictionaries(
    _paths, st.binary(max_size=200), min_size=1, max_size=LIMITS.members
).filter(_is_tree)
_odd_part = st.one_of(
    st.sampled_from(["..", ".", "", "~", "C:", "__MACOSX", ".DS_Store", "._x", "con", "a" * 256]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    _plain,
)
_odd_names = st.tuples(
    st.sampled_from(["", "/", "./", "//", "..\\", "C:/"]), st.lists(_odd_part, max_size=7)
).map(lambda parts: parts[0] + "/".join(parts[1]))
_pax = st.lists(
    st.tuples(
        st.sampled_from(_PAX_KEYS),
        st.one_of(
            st.integers(-(2**70), 2**70).map(str),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
            _odd_names,
        ),
    ),
    max_size=3,
    unique_by=lambda item: item[0],
).map(tuple)
_odd_members = st.builds(
    Member,
    name=_odd_names,
    content=_content,
    type=st.sampled_from(_TAR_TYPES),
    link=_odd_names,
    pax=_pax,
    mode=st.integers(0, 0xFFFF),
    method=st.sampled_from([0, 8, 12, 14]),
)
_edits = st.lists(
    st.tuples(
        st.sampled_from(["overwrite", "insert", "remove", "repeat", "cut"]),
        st.integers(0, 2**20),
        st.binary(min_size=1, max_size=24),
    ),
    min_size=1,
    max_size=5,
)
_simple = st.lists(
    st.builds(Member, name=_paths, content=st.binary(max_size=200)), min_size=1, max_size=4
)
_magic = st.sampled_from(
    [b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"\x1f\x8b\x08\0", bytes(257) + b"ustar\x0000"]
)


def _tar_of(members: list[Member], edits: Any, zipped: bool) -> bytes:
    content = with_tar_fields(packed("tar", members), edits)
    return gzip.compress(content, 1, mtime=0) if zipped else content


PROPERTIES: Properties = {
    "sound archives": (require_whole, st.tuples(st.sampled_from(_KINDS), _sound)),
    "odd members": (
        require_contained,
        st.tuples(st.builds(packed, st.sampled_from(_KINDS), st.lists(_odd_members, max_size=5))),
    ),
    "damaged archives": (
        require_contained,
        st.tuples(
            st.builds(with_damage, st.builds(packed, st.sampled_from(_KINDS), _simple), _edits)
        ),
    ),
    "headers of tar": (
        require_contained,
        st.tuples(
            st.builds(
                _tar_of,
                _simple,
                st.lists(
                    st.tuples(
                        st.integers(0, 8), st.integers(0, 511), st.binary(min_size=1, max_size=12)
                    ),
                    min_size=1,
                    max_size=4,
                ),
                st.booleans(),
            )
        ),
    ),
    "headers of zip": (
        require_contained,
        st.tuples(
            st.builds(
                with_zip_fields,
                st.builds(packed, st.just("zip"), _simple),
                st.lists(
                    st.tuples(
                        st.integers(0, 2),
                        st.integers(0, 40),
                        st.sampled_from([1, 2, 4, 8]),
                        st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 300)),
                    ),
                    min_size=1,
                    max_size=4,
                ),
            )
        ),
    ),
    "any bytes": (
        require_contained,
        st.tuples(st.builds(lambda magic, rest: magic + rest, _magic, st.binary(max_size=600))),
    ),
}
"""What is fuzzed: the property, and what it is given."""
