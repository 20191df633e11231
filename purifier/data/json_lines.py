"""JSON Lines: one record a line; blank lines do not count."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from purifier.data.encoding import require_utf8
from purifier.data.label_file import Edit, malformed
from purifier.data.sample import Place
from purifier.errors import DataError, RowError

MAX_RECORD_BYTES = 64 * 2**20
"""Longest line that is read; a longer one is malformed."""

LONG_NUMBER = "a whole number has too many digits; write it as text."
"""What is wrong with JSON that Python reads no further for."""

_BOM = b"\xef\xbb\xbf"

STRIDE = 256
"""How many records lie between two of which the offset is kept."""


class JsonLines:
    """A `.jsonl` file.

    The offset of every 256th record is kept once it was passed, so that a later read may start
    there. Lines that are not decoded cost no more than their reading.
    """

    kind = "jsonl"

    def __init__(self, path: Path) -> None:
        self.paths: tuple[Path, ...] = (path,)
        self._offsets = {0: 0}

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[Place, Any]]:
        for number, line in self._lines(start):
            if stop is not None and number >= stop:
                return
            place = Place(self.paths[0].name, number)
            yield place, _decoded(line, place)

    def rewrite(self, folder: Path, edit: Edit, *, columns: Sequence[str] = ()) -> Path:
        target = folder / self.paths[0].name
        with target.open("wb") as file:
            for number, line in self._lines(0):
                place = Place(self.paths[0].name, number)
                record = _decoded(line, place)
                for new in edit(place, record):
                    if new is record:
                        assert line is not None
                        file.write(line if line.endswith(b"\n") else line + b"\n")
                    else:
                        file.write(encoded(new, place) + b"\n")
        return target

    def _lines(self, start: int) -> Iterator[tuple[int, bytes | None]]:
        """Number and bytes of every record from `start` on; None for one that is too long."""
        block = start // STRIDE
        while block not in self._offsets:
            block -= 1
        number = block * STRIDE
        try:
            require_utf8(self.paths[0])
            with self.paths[0].open("rb") as file:
                file.seek(self._offsets[block])
                while True:
                    offset = file.tell()
                    line = _next_line(file)
                    if line == b"":
                        return
                    if line is not None and not line.removeprefix(_BOM).strip():
                        continue
                    if number % STRIDE == 0:
                        self._offsets.setdefault(number // STRIDE, offset)
                    if number >= start:
                        yield number, line
                    number += 1
        except OSError:
            raise unreadable(self.paths[0]) from None


def encoded(record: Any, place: Place, indent: int | None = None) -> bytes:
    """A record as JSON; escapes what is not ASCII only where UTF-8 cannot write it.

    Raises:
        DataError: If the record is nested too deeply.
    """
    try:
        try:
            return json.dumps(record, ensure_ascii=False, indent=indent).encode("utf-8")
        except UnicodeEncodeError:
            return json.dumps(record, indent=indent).encode("utf-8")
    except RecursionError:
        raise DataError(f"{place}: JSON is nested too deeply.") from None


def unreadable(path: Path) -> DataError:
    """The error of a file that cannot be opened or read."""
    return DataError(f"{path.name} cannot be read; check the path and its rights.")


def _next_line(file: BinaryIO) -> bytes | None:
    """The next line, empty at the end; None for one that is too long, which is passed over."""
    line = file.readline(MAX_RECORD_BYTES)
    if len(line) < MAX_RECORD_BYTES or line.endswith(b"\n"):
        return line
    while True:
        rest = file.readline(MAX_RECORD_BYTES)
        if not rest or rest.endswith(b"\n"):
            return None


def _decoded(line: bytes | None, place: Place) -> Any | RowError:
    if line is None:
        return malformed(place, f"the line is longer than {MAX_RECORD_BYTES:,} bytes.")
    try:
        # Files that were joined have a byte order mark wherever one of them begins.
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return malformed(place, "not UTF-8 text; save the file as UTF-8.")
    except json.JSONDecodeError as error:
        return malformed(place, f"not valid JSON (column {error.colno}).")
    except RecursionError:
        return malformed(place, "JSON is nested too deeply.")
    except ValueError:
        return malformed(place, LONG_NUMBER)
