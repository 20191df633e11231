"""From the name of an image in a record to the file in the data set's image folder."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from purifier.errors import RowError
from purifier.messages import quoted

_ADDRESS = re.compile(r"(?:https?|ftp|s3|gs)://")
_SAME_FORMAT = {".jpg": ".jpeg", ".jpeg": ".jpg", ".tif": ".tiff", ".tiff": ".tif"}


def image_file(folder: Path, name: str, where: str) -> Path:
    """The file of an image.

    A name with backslashes is read as Windows means it, unless a file has that very name.

    Args:
        folder: The data set's image folder.
        name: The name, relative to it.
        where: Begins the message of an error.

    Raises:
        RowError: `missing_image` if the name is an address, the file lies outside the folder
            (also behind a symbolic link) or is no file; a file with nearly that name is named.
    """
    if _ADDRESS.match(name):
        raise _missing(
            f"{where}image {quoted(name)} is an address; nothing is fetched: put the file into "
            "the image folder."
        )
    outside = False
    for spelled in _spellings(name):
        try:
            root = folder.resolve()
            path = (root / spelled).resolve()
            inside, exists = path.is_relative_to(root), path.is_file()
        except (OSError, ValueError, RuntimeError):
            continue
        if inside and exists:
            return path
        outside = outside or not inside
    if outside:
        raise _missing(
            f"{where}image {quoted(name)} lies outside the image folder; move it inside."
        )
    meant = _meant(folder, name)
    remedy = "add the file or mend the name."
    if meant is not None:
        remedy = f"{quoted(meant)} does: mend the name."
    raise _missing(f"{where}image {quoted(name)} does not exist in the image folder; {remedy}")


def has_image(folder: Path, name: str) -> bool:
    """Whether an image folder holds the file of an image."""
    try:
        image_file(folder, name, "")
    except RowError:
        return False
    return True


def _spellings(name: str) -> Iterator[str]:
    """The name, and what it is on Windows."""
    yield name
    if "\\" in name:
        yield name.replace("\\", "/")


def _meant(folder: Path, name: str) -> str | None:
    """A file of the folder that goes by nearly the same name."""
    for candidate in _similar(name.replace("\\", "/")):
        if candidate == name:
            continue
        try:
            root = folder.resolve()
            path = (root / candidate).resolve()
            if path.is_relative_to(root) and path.is_file():
                return candidate
        except (OSError, ValueError, RuntimeError):
            continue
    return None


def _similar(name: str) -> Iterator[str]:
    """Names that people and file systems take for this one; few, for each costs a look-up."""
    path = PurePosixPath(name)
    extension = path.suffix.lower()
    for suffix in filter(None, (extension, _SAME_FORMAT.get(extension))):
        for spelled in (suffix, suffix.upper(), suffix[:2].upper() + suffix[2:]):
            yield str(path.with_suffix(spelled))
    yield name.lower()
    yield unicodedata.normalize("NFC", name)
    yield unicodedata.normalize("NFD", name)
    yield path.name


def _missing(message: str) -> RowError:
    return RowError(message, reason="missing_image", param="image")
