"""Files that all workers share: a local folder, or any store that fsspec reaches.

A key is a relative path such as `jobs/ftjob-1/shards/00042.jsonl`. Whatever is there is whole:
a file is written under a temporary name and moved; a folder counts from the moment its
manifest is there, which is written last and names every file with its SHA-256.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from purifier.mdlm.delta import file_sha256
from server.store.home import Home

FOLDER_MANIFEST = "manifest.json"
"""Names the files of a folder; a folder without it is not there."""

_PART = r"[\w@:=,+()-][\w .@:=,+()-]*"
_KEY = re.compile(rf"{_PART}(/{_PART})*")


class BlobDamaged(Exception):
    """A file of the store is not what its manifest says; the message names its key."""


def open_store(home: Home, url: str | None) -> BlobStore:
    """The shared store of a data folder: the folder itself, or what a URL names."""
    return BlobStore(url or home.root, cache=home.root / "cache" if url else None)


class BlobStore:
    """Files by key.

    Args:
        url: A folder, or a URL that fsspec knows, such as `s3://bucket/prefix`.
        cache: Folder for copies of remote files; a store in a local folder needs none.
    """

    def __init__(self, url: str | Path, *, cache: Path | None = None) -> None:
        self.url = str(url)
        self._fs, root = fsspec.core.url_to_fs(self.url, **_uncached(self.url))
        self._root = str(root).rstrip("/")
        self.is_local = isinstance(self._fs, LocalFileSystem)
        if not self.is_local and cache is None:
            cache = Path(tempfile.gettempdir()) / f"disp-blobs-{os.getuid()}"
        self._cache = Path(self._root) if cache is None else cache

    def exists(self, key: str) -> bool:
        """Whether a file is there."""
        return bool(self._fs.exists(self._path(key)))

    def size(self, key: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: If it is not there.
        """
        return int(self._fs.size(self._path(key)))

    def read(self, key: str) -> bytes:
        """The bytes of a file.

        Raises:
            FileNotFoundError: If it is not there.
        """
        return cast(bytes, self._fs.cat_file(self._path(key)))

    def read_json(self, key: str) -> Any:
        """The content of a JSON file.

        Raises:
            FileNotFoundError: If it is not there.
            BlobDamaged: If it is not JSON.
        """
        try:
            return json.loads(self.read(key))
        except ValueError:
            raise BlobDamaged(f"{key} is not JSON.") from None

    def write(self, key: str, content: bytes) -> None:
        """Puts a file there, whole or not at all.

        Raises:
            OSError: If the store does not take it, for example because it is full.
        """
        self._commit(key, lambda path: _write_durably(path, content), content)

    def write_json(self, key: str, content: Any) -> None:
        """Puts a JSON file there, whole or not at all; equal contents give equal bytes."""
        self.write(key, (json.dumps(content, sort_keys=True, indent=1) + "\n").encode())

    def put(self, key: str, source: Path) -> None:
        """Copies a local file there, whole or not at all.

        Raises:
            OSError: If the store does not take it.
        """
        self._commit(key, lambda path: _copy_durably(source, path), source)

    def local(self, key: str) -> Path:
        """A file as a path of this machine; a remote one is copied whenever it has changed.

        Raises:
            FileNotFoundError: If it is not there.
        """
        path = self._cache / _checked(key)
        if not self.is_local:
            self._refresh(key, path)
        if not path.is_file():
            raise FileNotFoundError(key)
        return path

    def folder(self, key: str) -> Path:
        """A place for work in progress inside a store that is a folder of this machine.

        Raises:
            ValueError: If the store is remote.
        """
        if not self.is_local:
            raise ValueError("a remote store has no folders of this machine")
        return Path(self._path(key))

    def list(self, prefix: str) -> list[str]:
        """Keys below a prefix, sorted; unfinished files are left out."""
        base = self._path(prefix)
        if not self._fs.exists(base):
            return []
        skip = len(self._root) + 1
        found = [str(path)[skip:] for path in self._fs.find(base)]
        return sorted(key for key in found if _KEY.fullmatch(key))

    def has_folder(self, key: str) -> bool:
        """Whether a folder is there, whole."""
        return self.exists(f"{key}/{FOLDER_MANIFEST}")

    def put_folder(
        self, key: str, source: Path, facts: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Copies a local folder there; it counts once its manifest is written.

        Args:
            key: Where.
            source: The folder; files of the manifest's name in it are refused.
            facts: Further entries of the manifest.

        Returns:
            The manifest: `files` {relative name: SHA-256}, and `facts`.
        """
        files = {
            path.relative_to(source).as_posix(): path
            for path in sorted(source.rglob("*"))
            if path.is_file()
        }
        if FOLDER_MANIFEST in files:
            raise ValueError(f"{FOLDER_MANIFEST} is the store's own file")
        for name, path in files.items():
            self.put(f"{key}/{name}", path)
        manifest = {
            "files": {name: file_sha256(path) for name, path in files.items()},
            "facts": dict(facts or {}),
        }
        self.write_json(f"{key}/{FOLDER_MANIFEST}", manifest)
        return manifest

    def local_folder(self, key: str) -> Path:
        """A whole folder as a path of this machine, every file checked.

        Raises:
            FileNotFoundError: If it is not there.
            BlobDamaged: If a file is missing or altered.
        """
        manifest = self.folder_manifest(key)
        for name, expected in manifest["files"].items():
            try:
                path = self.local(f"{key}/{name}")
            except FileNotFoundError:
                raise BlobDamaged(f"{key}/{name} is missing.") from None
            if file_sha256(path) != expected:
                raise BlobDamaged(f"{key}/{name} was altered or damaged.")
        return self._cache / _checked(key)

    def folder_manifest(self, key: str) -> dict[str, Any]:
        """What `put_folder` returned.

        Raises:
            FileNotFoundError: If the folder is not there.
        """
        return cast("dict[str, Any]", self.read_json(f"{key}/{FOLDER_MANIFEST}"))

    def sweep(self, prefix: str) -> None:
        """Takes away what killed writers left unfinished below a prefix."""
        base = self._path(prefix)
        for path in self._fs.find(base) if self._fs.exists(base) else ():
            if str(path).rpartition("/")[2].startswith("."):
                self._fs.rm_file(path)

    def remove(self, key: str) -> None:
        """Takes a file away, with this machine's copy; nothing happens if it is not there."""
        if self.exists(key):
            self._fs.rm_file(self._path(key))
        if not self.is_local:
            path = self._cache / _checked(key)
            _version_file(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def remove_folder(self, key: str) -> None:
        """Takes a folder away; it does not count any more from the first moment on."""
        self.remove(f"{key}/{FOLDER_MANIFEST}")
        for file in self.list(key):
            self.remove(file)

    def _path(self, key: str) -> str:
        return f"{self._root}/{_checked(key)}"

    def _commit(self, key: str, place: Any, content: bytes | Path) -> None:
        final = self._path(key)
        folder, name = final.rsplit("/", 1)
        # A leading dot keeps it out of `list`.
        temporary = f"{folder}/.{name}.{uuid.uuid4().hex}"
        if self.is_local:
            Path(folder).mkdir(parents=True, exist_ok=True)
            try:
                place(Path(temporary))
                Path(temporary).replace(final)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            return
        self._fs.makedirs(folder, exist_ok=True)
        if isinstance(content, bytes):
            self._fs.pipe_file(temporary, content)
        else:
            self._fs.put_file(str(content), temporary)
        self._fs.mv(temporary, final)

    def _refresh(self, key: str, path: Path) -> None:
        """Copies a remote file unless this machine has a copy of what is there now."""
        version, noted = str(self._fs.ukey(self._path(key))), _version_file(path)
        if path.is_file() and noted.is_file() and noted.read_text() == version:
            return
        noted.unlink(missing_ok=True)
        self._download(key, path)
        _replace(noted, lambda place: place.write_text(version))

    def _download(self, key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, lambda place: self._fs.get_file(self._path(key), str(place)))


def _uncached(url: str) -> dict[str, Any]:
    """Options that keep every file system of a chained URL from remembering listings.

    Other processes write into the store, and are waited for by looking again.
    """
    protocols = [part.partition("://")[0] for part in url.split("::")]
    return {protocol: {"use_listings_cache": False} for protocol in protocols}


def _version_file(path: Path) -> Path:
    """Where it stands which version of a remote file a copy is of."""
    return path.with_name(f".{path.name}.version")


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file of this machine beside its place and moves it there."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_key(text: str) -> bool:
    """Whether a relative path can be a key, or a part of one."""
    return _KEY.fullmatch(text) is not None


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a key of the store: {key!r}")
    return key


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _copy_durably(source: Path, path: Path) -> None:
    with source.open("rb") as reader, path.open("xb") as writer:
        shutil.copyfileobj(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())
