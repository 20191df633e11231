"""A data set: its label file in whatever format, its rows one after another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purifier.data.image_files import has_image
from purifier.data.json_array import JsonArray
from purifier.data.json_lines import JsonLines, unreadable
from purifier.data.label_file import LabelFile
from purifier.data.parquet import Parquet
from purifier.data.records import check_record, kind_of, read_record, with_mark
from purifier.data.sample import Place, Sample, open_image
from purifier.data.side_table import SIDE_FILE
from purifier.data.unread import is_vqav2, vqav2_refusal
from purifier.errors import DataError, RowError

REASONS = (
    "missing_image",
    "undecodable_image",
    "image_count",
    "empty_answer",
    "duplicate_id",
    "prompt_too_long",
    "malformed",
)
"""Codes of what is wrong with a row."""

METADATA_FILE = "metadata.jsonl"
"""Label file of Hugging Face's ImageFolder."""

_NOT_LABELS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_PROBED_ROWS = 64
_TABLE = ".parquet"


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        place: Where it stands.
        reason: One of `REASONS`.
        message: What is wrong and what to do about it; names the place.
    """

    place: Place
    reason: str
    message: str


@dataclass(frozen=True)
class DataSet:
    """A data set on disk; reading it keeps a few rows in memory, however many it has.

    Attributes:
        path: The label file, or the folder of several.
        images: The folder that image names are relative to.
        format: Layout and file format, such as `llava-jsonl` or `messages-parquet`.
        file: Its records.
        mark_images: Whether a row with one image and no `<image>` mark gets one in front of its
            first question; else it is a bad row.
    """

    path: Path
    images: Path
    format: str
    file: LabelFile
    mark_images: bool = True

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Sample | BadRow]:
        """Reads rows one after another; a row's number is its `source.record`.

        No image is opened: see `check_row`.

        Args:
            start: Number of the first row, counted from 0; bad rows count.
            stop: Number of the first row that is no longer read; None: read to the end.

        Raises:
            DataError: If the file itself is damaged, so that no further row can be read.
        """
        for place, record in self.file.records(start, stop):
            yield read_row(record, place, mark_images=self.mark_images)

    def fingerprint(self) -> str:
        """SHA-256 of the label file; of several, over the hashes of all, in order.

        Raises:
            DataError: If a file cannot be read.
        """
        hashes = [_file_hash(path) for path in self.file.paths]
        if len(hashes) == 1:
            return hashes[0]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def open_dataset(
    path: str | Path, *, images: str | Path | None = None, mark_images: bool = True
) -> DataSet:
    """Opens a data set in any format that is read.

    Args:
        path: A `.json`, `.jsonl` or `.parquet` file, or a folder: an ImageFolder with its
            `metadata.jsonl`, a folder of parquet files, or a folder with one label file.
        images: The folder that image names are relative to. Default: the label file's folder
            or its subfolder `images`, whichever holds the first images that are named.
        mark_images: See `DataSet`.

    Raises:
        DataError: If nothing is there, or its format is not recognised or is VQAv2's.
    """
    path = Path(path)
    path = _unwrapped(path) if path.is_dir() else path
    file = _label_file(path)
    folder = path if path.is_dir() else path.parent
    first = [record for _, record in file.records(0, _PROBED_ROWS)]
    if not first:
        raise DataError(f"{path.name} holds no records.")
    if is_vqav2(first[0]) and isinstance(read_row(first[0], Place("", 0)), BadRow):
        raise DataError(f"{path.name}: {vqav2_refusal()}")
    if images is not None and not Path(images).is_dir():
        raise DataError("The image folder does not exist or is no folder.", param="images")
    kind = kind_of(first[0])
    if file.paths[0].name == METADATA_FILE:
        kind, folder = "imagefolder", file.paths[0].parent
    where = Path(images) if images is not None else _image_folder(folder, first)
    return DataSet(path, where, f"{kind}-{file.kind}", file, mark_images)


def read_row(record: Any, place: Place, *, mark_images: bool = True) -> Sample | BadRow:
    """The row of a record: a sample that can be trained on, or what is wrong with it.

    Args:
        record: The record, or the `RowError` of one that could not be read.
        place: Where it stands.
        mark_images: See `DataSet`.
    """
    try:
        if isinstance(record, RowError):
            raise record
        sample = read_record(record, place)
        if mark_images:
            sample = with_mark(sample)
        check_record(sample)
        return sample
    except RowError as error:
        return BadRow(place, error.reason, error.message)


def check_row(sample: Sample, images: Path) -> BadRow | None:
    """Opens a row's images.

    Args:
        sample: The row.
        images: The data set's image folder.

    Returns:
        The row as a bad one if an image is missing or cannot be decoded, else None.
    """
    place = sample.source or Place("memory", 0)
    try:
        for image in sample.images:
            open_image(images, image, place)
    except RowError as error:
        return BadRow(place, error.reason, error.message)
    return None


def _label_file(path: Path) -> LabelFile:
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise DataError(f"{path.name} does not exist or is no file.")
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return JsonLines(path)
    if suffix == ".json":
        return JsonArray(path)
    if suffix == _TABLE:
        return Parquet([path], path)
    raise DataError(f"{path.name} must end with .json, .jsonl or .parquet.")


def _unwrapped(folder: Path) -> Path:
    """The folder inside a folder that holds nothing else, as archives have it."""
    entries = [entry for entry in folder.iterdir() if entry.name[0] not in "._"]
    if len(entries) == 1 and entries[0].is_dir():
        return _unwrapped(entries[0])
    return folder


def _folder(folder: Path) -> LabelFile:
    """The label file of a folder."""
    metadata = [folder / METADATA_FILE] if (folder / METADATA_FILE).is_file() else []
    found = metadata or sorted(folder.glob(f"*/{METADATA_FILE}"))
    if not found:
        found = [
            file
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in (".json", ".jsonl") and file.name not in _NOT_LABELS
        ]
    if len(found) == 1:
        return _label_file(found[0])
    if found:
        names = ", ".join(file.relative_to(folder).as_posix() for file in found[:4])
        raise DataError(f"{folder.name} holds several label files ({names}); name one of them.")
    tables = _tables(folder, "*") or _tables(folder, "*/*")
    tables = [file for file in tables if file.name != SIDE_FILE]
    tables = [file for file in tables if file.name.startswith("train")] or tables
    if not tables:
        raise DataError(f"{folder.name} holds no {METADATA_FILE}, .json, .jsonl or .parquet file.")
    return Parquet(tables, folder)


def _tables(folder: Path, pattern: str) -> list[Path]:
    """The parquet files of a folder in the order of their names."""
    return sorted(file for file in folder.glob(pattern) if file.suffix.lower() == _TABLE)


def _image_folder(folder: Path, records: list[Any]) -> Path:
    """The folder, or its subfolder `images`, whichever holds the images that records name."""
    inner = folder / "images"
    if not inner.is_dir():
        return folder
    for number, record in enumerate(records):
        row = read_row(record, Place("", number))
        names = (
            [image for image in row.images if isinstance(image, str)]
            if isinstance(row, Sample)
            else []
        )
        for candidate in (folder, inner):
            if any(has_image(candidate, name) for name in names):
                return candidate
    return inner


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise unreadable(path) from None
