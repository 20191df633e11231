"""A JSON file that is one list of records, read as a stream."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from purifier.data.json_lines import encoded, unreadable
from purifier.data.label_file import Edit
from purifier.data.sample import Place
from purifier.errors import DataError

_BOM = b"\xef\xbb\xbf"


class JsonArray:
    """A `.json` file; only one record at a time is in memory."""

    kind = "json"

    def __init__(self, path: Path) -> None:
        self.paths: tuple[Path, ...] = (path,)

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[Place, Any]]:
        path = self.paths[0]
        number = -1
        try:
            with path.open("rb") as file:
                _skip_to_list(file, path)
                elements = enumerate(ijson.items(file, "item", use_float=True))
                for number, record in islice(elements, start, stop):
                    yield Place(path.name, number), record
        except ijson.JSONError:
            where = f"after record {number}" if number >= 0 else "near its start"
            raise DataError(f"{path.name}: not valid JSON {where}.") from None
        except OSError:
            raise unreadable(path) from None

    def rewrite(self, folder: Path, edit: Edit) -> Path:
        indent = self._indent()
        target = folder / self.paths[0].name
        line = "\n" + " " * (indent or 0) if indent is not None else ""
        between = line if indent is not None else " "
        n_written = 0
        with target.open("wb") as file:
            file.write(b"[")
            for place, record in self.records():
                new = edit(place, record)
                if new is None:
                    continue
                text = encoded(new, place, indent)
                if indent is not None:
                    text = text.replace(b"\n", line.encode())
                file.write((f",{between}" if n_written else line).encode() + text)
                n_written += 1
            file.write(b"\n]\n" if indent is not None and n_written else b"]\n")
        return target

    def _indent(self) -> int | None:
        """Spaces before the first record; None where the file is written on one line."""
        with self.paths[0].open("rb") as file:
            start = re.match(rb"(?:\xef\xbb\xbf)?\s*\[[ \t]*\r?\n( *)", file.read(4096))
        return len(start[1]) if start else None


def _skip_to_list(file: BinaryIO, path: Path) -> None:
    """Moves to the file's first bracket.

    Raises:
        DataError: If the file holds no list.
    """
    head = file.read(4096)
    file.seek(len(_BOM) if head.startswith(_BOM) else 0)
    if not head.removeprefix(_BOM).lstrip().startswith(b"["):
        raise DataError(
            f"{path.name} must hold a list of records; for one record a line use .jsonl."
        )
