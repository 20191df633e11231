"""A JSON file that is one list of records, read as a stream."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from purifier.data.json_lines import MAX_RECORD_BYTES, STRIDE, encoded, unreadable
from purifier.data.label_file import Edit
from purifier.data.sample import Place
from purifier.errors import DataError

_CHUNK_BYTES = 2**20
_LONGEST_TOKEN = 16
_SPACE = re.compile(r"[ \t\n\r]*")


class JsonArray:
    """A `.json` file; only some records at a time are in memory.

    The offset of every 256th record is kept once it was passed, so that a later read may start
    there.
    """

    kind = "json"

    def __init__(self, path: Path) -> None:
        self.paths: tuple[Path, ...] = (path,)
        self._offsets: dict[int, int] = {}

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[Place, Any]]:
        for number, _, record in self._elements(start):
            if stop is not None and number >= stop:
                return
            yield Place(self.paths[0].name, number), record

    def rewrite(self, folder: Path, edit: Edit, *, columns: Sequence[str] = ()) -> Path:
        target = folder / self.paths[0].name
        margin = self._margin()
        before, between = ("", ", ") if margin is None else (margin, f",{margin}")
        n_written = 0
        with target.open("wb") as file:
            file.write(b"[")
            for number, text, record in self._elements(0):
                place = Place(self.paths[0].name, number)
                for new in edit(place, record):
                    file.write((between if n_written else before).encode())
                    file.write(text.encode() if new is record else _like(text, new, place, margin))
                    n_written += 1
            file.write(b"]\n" if margin is None or not n_written else b"\n]\n")
        return target

    def _elements(self, start: int) -> Iterator[tuple[int, str, Any]]:
        """Number, text and value of every record from `start` on."""
        path = self.paths[0]
        number = -1
        try:
            with path.open("rb") as file:
                for number, text, record in self._decoded(file, start // STRIDE):
                    if number >= start:
                        yield number, text, record
        except UnicodeDecodeError:
            raise DataError(f"{path.name} is not UTF-8 text.") from None
        except json.JSONDecodeError:
            where = f"after record {number}" if number >= 0 else "near its start"
            raise DataError(f"{path.name}: not valid JSON {where}.") from None
        except RecursionError:
            raise DataError(f"{path.name}: JSON is nested too deeply.") from None
        except OSError:
            raise unreadable(path) from None

    def _decoded(self, file: BinaryIO, block: int) -> Iterator[tuple[int, str, Any]]:
        if 0 not in self._offsets:
            self._offsets[0] = _first_element(file, self.paths[0])
        while block not in self._offsets:
            block -= 1
        number = block * STRIDE
        window = _Window(file, self._offsets[block])
        if number == 0 and window.next() == "]":
            window.step()
        else:
            while True:
                window.next()
                if number % STRIDE == 0:
                    self._offsets.setdefault(number // STRIDE, window.offset)
                yield number, *window.element()
                number += 1
                separator = window.next()
                if separator not in (",", "]"):
                    raise window.error("expected , or ]")
                window.step()
                if separator == "]":
                    break
        if window.next():
            raise window.error("expected the end")

    def _margin(self) -> str | None:
        """The line break and spaces before a record; None where all stand on one line."""
        with self.paths[0].open("rb") as file:
            start = re.match(rb"(?:\xef\xbb\xbf)?\s*\[[ \t]*\r?\n([ \t]*)", file.read(4096))
        return "\n" + start[1].decode() if start else None


class _Window:
    """The part of a text that is being read, and where it stands in the file."""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self.offset = offset
        self._file = file
        self._file.seek(offset)
        self._bytes = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()
        self._text = ""
        self._position = 0
        self._ended = False

    def next(self) -> str:
        """Moves to the next character that is no space; empty at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self._position)
            assert space is not None
            self._move(space.end())
            if self._position < len(self._text):
                return self._text[self._position]
            if self._ended:
                return ""
            self._grow()

    def step(self) -> None:
        """Moves over one character."""
        self._move(self._position + 1)

    def element(self) -> tuple[str, Any]:
        """Takes the value that starts here, with its text."""
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                if self._ended or self._is_final(error):
                    raise
            else:
                # A number may be cut in two places: 1 of 1.5, 1 of 1e+5.
                if len(self._text) - end >= _LONGEST_TOKEN or self._ended:
                    text = self._text[self._position : end]
                    self._move(end)
                    return text, value
            self._grow()

    def error(self, message: str) -> json.JSONDecodeError:
        """What is wrong at this place."""
        return json.JSONDecodeError(message, self._text, self._position)

    def _is_final(self, error: json.JSONDecodeError) -> bool:
        """Whether more text would not help."""
        length = len(self._text)
        cut = error.msg.startswith("Unterminated string") or length - error.pos < _LONGEST_TOKEN
        return not cut or length - self._position > MAX_RECORD_BYTES

    def _move(self, position: int) -> None:
        self.offset += len(self._text[self._position : position].encode())
        self._position = position

    def _grow(self) -> None:
        rest = self._text[self._position :]
        chunk = self._file.read(max(_CHUNK_BYTES, len(rest)))
        self._ended = not chunk
        self._text = rest + self._bytes.decode(chunk, final=self._ended)
        self._position = 0


def _first_element(file: BinaryIO, path: Path) -> int:
    """Offset of what stands after the list's bracket.

    Raises:
        DataError: If the file holds no list.
    """
    start = re.match(rb"(?:\xef\xbb\xbf)?\s*\[", file.read(4096))
    if start is None:
        raise DataError(
            f"{path.name} must hold a list of records; for one record a line use .jsonl."
        )
    return start.end()


def _like(text: str, record: Any, place: Place, margin: str | None) -> bytes:
    """A record's JSON, laid out as it was."""
    if "\n" not in text or margin is None:
        return encoded(record, place)
    spaces = len(margin) - 1
    return encoded(record, place, spaces or None).replace(b"\n", margin.encode())
