"""Uploads in a shared store that is no folder of this machine, where every worker finds them."""

from __future__ import annotations

import shutil
import tarfile
import uuid
from pathlib import Path

from server.store.blobs import BlobDamaged, BlobStore
from server.store.tar import tar_chunks


def send_upload(store: BlobStore, file_id: str, folder: Path, scratch: Path) -> None:
    """Puts an upload's folder into the shared store, as one tar.

    A store in a local folder needs none: who shares it shares the data folder.

    Args:
        store: What all workers share.
        file_id: The upload.
        folder: Its files, unpacked and checked.
        scratch: Folder with room for the tar.

    Raises:
        OSError: If there is no room, or the store does not take it.
    """
    if store.is_local:
        return
    packed = scratch / f".incoming-{uuid.uuid4().hex}.tar"
    try:
        with packed.open("xb") as file:
            for chunk in tar_chunks(folder):
                file.write(chunk)
        store.put(_key(file_id), packed)
    finally:
        packed.unlink(missing_ok=True)


def receive_upload(store: BlobStore, file_id: str, place: Path) -> Path | None:
    """The folder of an upload on this machine, unpacked once.

    Args:
        store: What all workers share.
        file_id: The upload.
        place: Folder for unpacked uploads.

    Returns:
        None if the shared store does not have it.

    Raises:
        BlobDamaged: If what it has cannot be unpacked.
    """
    folder = place / file_id
    if folder.is_dir():
        return folder
    if store.is_local or not store.exists(_key(file_id)):
        return None
    part = place / f".{file_id}.{uuid.uuid4().hex}"
    packed = store.local(_key(file_id))
    try:
        with tarfile.open(packed) as archive:
            archive.extractall(part, filter="data")
        part.rename(folder)
    except tarfile.TarError:
        raise BlobDamaged(f"{_key(file_id)} cannot be unpacked.") from None
    except OSError:
        if not folder.is_dir():  # another worker of this machine was faster
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        packed.unlink(missing_ok=True)
    return folder


def remove_upload(store: BlobStore, file_id: str) -> None:
    """Takes an upload out of the shared store."""
    if not store.is_local:
        store.remove(_key(file_id))


def _key(file_id: str) -> str:
    return f"files/{file_id}.tar"
