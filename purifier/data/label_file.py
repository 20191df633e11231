"""What a label file is to a data set, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from purifier.data.sample import Place
from purifier.errors import RowError

Edit = Callable[[Place, Any], Sequence[Any]]
"""Gives the records to write for one that was read: the same object if nothing changes, none to
leave it out, several to write further ones behind it. An unreadable record comes as its
`RowError`; it cannot be written."""


class LabelFile(Protocol):
    """The file, or files, that hold a data set's records.

    Attributes:
        kind: `json`, `jsonl` or `parquet`.
        paths: Its files, in the order of their records.
    """

    kind: str
    paths: tuple[Path, ...]

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[Place, Any]]:
        """Reads records one after another.

        Args:
            start: Number of the first record, counted from 0 over all files.
            stop: Number of the first record that is no longer read; None: read to the end.

        Yields:
            The record's place and the record; instead of one that cannot be read its
            `RowError`.

        Raises:
            DataError: If the file itself cannot be read, or not beyond some record.
        """
        ...

    def rewrite(self, folder: Path, edit: Edit, *, columns: Sequence[str] = ()) -> Path:
        """Writes the records to a folder in the same format, each as `edit` gives it.

        Args:
            folder: An existing folder.
            edit: Asked for every record, in order.
            columns: Keys with text that edited records may have besides their own; a format
                with fixed columns gets those it lacks.

        Returns:
            What `open_dataset` opens: the new file, or the folder where there are several.
        """
        ...


def malformed(place: Place, message: str) -> RowError:
    """The error of a record that cannot be read."""
    return RowError(f"{place}: {message}", reason="malformed")
