"""The files of a checkpoint in the store: taken in whole or not at all, and checked again later.

    checkpoints/<12 hex of the content>/<name>/     the checkpoint
    checkpoints/<12 hex of the content>/<base>      a delta's base, as a link

Deltas are loaded with their base beside them; a folder for every content keeps two
checkpoints of one name apart.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purifier.errors import CheckpointError
from purifier.mdlm.delta import is_delta, read_delta
from purifier.mdlm.json_files import read_object
from purifier.mdlm.registry import check_folder, content_hash, file_hashes

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class Content:
    """What a checkpoint folder holds.

    Attributes:
        name: The folder's name.
        hashes: SHA-256 of every file by its path in the folder.
        delta: The manifest of a delta; None for full weights.
    """

    name: str
    hashes: Mapping[str, str]
    delta: Mapping[str, Any] | None

    @property
    def sha256(self) -> str:
        return content_hash(self.hashes)

    @property
    def parent(self) -> str | None:
        """The checkpoint that a delta says it was made from."""
        parent = None if self.delta is None else self.delta.get("parent")
        return parent if isinstance(parent, str) else None

    @property
    def id(self) -> str:
        """The same as `purifier.mdlm.registry.checkpoint_id`."""
        return f"{self.name}@sha256:{self.sha256[:12]}"


def read_content(folder: Path) -> Content:
    """Hashes a checkpoint folder and looks at what it is.

    Raises:
        CheckpointError: If it is none, or is refused.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise CheckpointError("The checkpoint folder does not exist.", param="model")
    if is_delta(folder):
        delta = read_object(folder / "delta.json", f"{folder.name}: delta.json")
    else:
        check_folder(folder)
        delta = None
    return Content(folder.name, file_hashes(folder), delta)


def take_in(folder: Path, content: Content, store: Path, base: Path | None) -> Path:
    """Copies a checkpoint into the store, unless its content is there already.

    Args:
        folder: Where it lies now.
        content: From `read_content`.
        store: Folder of the store.
        base: Folder of a delta's base.

    Returns:
        Its place, relative to `store`.

    Raises:
        CheckpointError: If its name cannot be used, the store has the same content under another
            one, or a delta does not fit its base.
    """
    if not _NAME.fullmatch(content.name):
        raise CheckpointError(
            f"{content.name!r} cannot name a checkpoint: use letters, digits, dots, - and _."
        )
    shelf = content.sha256[:12]
    place = Path(shelf) / content.name
    if (store / place).is_dir():
        check_files(store / place, content.hashes)
        return place
    incoming = store / f".incoming-{uuid.uuid4().hex}"
    try:
        _copy(folder, incoming / content.name, content.hashes)
        if content.delta is not None and base is not None:
            _link(incoming, str(content.delta.get("base")), base, store)
            read_delta(incoming / content.name)
        check_files(incoming / content.name, content.hashes)
        incoming.rename(store / shelf)
    except OSError:
        _refuse_second_name(store / shelf, content.name)
        if not (store / place).is_dir():
            raise
        check_files(store / place, content.hashes)  # another process took the same in
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    _sync(store)
    return place


def _refuse_second_name(shelf: Path, name: str) -> None:
    """A checkpoint is removed with its shelf, so a shelf holds one."""
    others = [path.name for path in shelf.iterdir()] if shelf.is_dir() else []
    other = next((one for one in others if not (shelf / one).is_symlink()), name)
    if other != name:
        raise CheckpointError(
            f"The store has the same content under the name {other!r} already; use that."
        )


def base_name(content: Content) -> str:
    """The name that a delta gives to the folder of its base.

    Raises:
        CheckpointError: If it names none.
    """
    name = content.delta.get("base") if content.delta else None
    if not isinstance(name, str) or Path(name).name != name:
        raise CheckpointError(f"{content.name}: delta.json must name its base folder.")
    return name


def check_base(content: Content, base: str, sha256: str) -> None:
    """Checks that a delta was made on a base.

    Args:
        content: The delta.
        base: Id of the base.
        sha256: Its content hash.

    Raises:
        CheckpointError: If it was not.
    """
    if content.delta is None or content.delta.get("base_sha256") != sha256:
        raise CheckpointError(f"{content.name}: it was not made on {base}.")


def check_files(folder: Path, hashes: Mapping[str, str]) -> None:
    """Checks that a folder holds exactly these files.

    Raises:
        CheckpointError: Naming the first file that is missing, altered or too many.
    """
    try:
        found = file_hashes(folder)
    except OSError:
        raise CheckpointError(f"{folder.name}: a file cannot be read.") from None
    for name, expected in hashes.items():
        if name not in found:
            raise CheckpointError(f"{folder.name}: {name} is missing.")
        if found[name] != expected:
            raise CheckpointError(f"{folder.name}: {name} was altered or damaged.")
    if added := sorted(found.keys() - hashes.keys()):
        raise CheckpointError(f"{folder.name}: {added[0]} was added.")


def _copy(source: Path, target: Path, hashes: Mapping[str, str]) -> None:
    for name in hashes:
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, file)
        _sync(file)
    for folder in {(target / name).parent for name in hashes}:
        _sync(folder)


def _link(incoming: Path, name: str, base: Path, store: Path) -> None:
    """Puts a base beside its delta under the name that the delta gives it."""
    if not _NAME.fullmatch(name) or (incoming / name).exists():
        raise CheckpointError("delta.json must name its base folder, and not as its own.")
    own = base.is_relative_to(store)
    target = Path("..") / base.relative_to(store) if own else base.resolve()
    (incoming / name).symlink_to(target, target_is_directory=True)


def _sync(path: Path) -> None:
    """Waits until a file or a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
