"""A JSON file that is one list of records, read as a stream."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from purifier.data.encoding import require_utf8
from purifier.data.json_lines import LONG_NUMBER, MAX_RECORD_BYTES, STRIDE, encoded, unreadable
from purifier.data.label_file import Edit
from purifier.data.sample import Place
from purifier.data.unread import vqav2_refusal
from purifier.errors import DataError

_CHUNK_BYTES = 2**20
_LONGEST_TOKEN = 16
_VQAV2_KEYS = (b'"task_type"', b'"data_subtype"')
_SPACE = re.compile(r"[ \t\n\r]*")


class _Mistake(Exception):
    """Where a text is not what it must be: the line, and the byte of the file from 0."""

    def __init__(self, message: str, line: int, byte: int) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.byte = byte


class JsonArray:
    """A `.json` file; only some records at a time are in memory.

    Offset and line of every 256th record are kept once it was passed, so that a later read may
    start there.
    """

    kind = "json"

    def __init__(self, path: Path) -> None:
        self.paths: tuple[Path, ...] = (path,)
        self._offsets: dict[int, tuple[int, int]] = {}

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[Place, Any]]:
        if stop is not None and stop <= start:
            return
        for number, _, record in self._elements(start):
            yield Place(self.paths[0].name, number), record
            if number + 1 == stop:
                return

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
            require_utf8(path)
            with path.open("rb") as file:
                for number, text, record in self._decoded(file, start // STRIDE):
                    if number >= start:
                        yield number, text, record
        except UnicodeDecodeError:
            where = _after(number)
            raise DataError(
                f"{path.name} is not UTF-8 text {where}; save the file as UTF-8."
            ) from None
        except _Mistake as error:
            where = f"{_after(number)} (line {error.line:,}, byte {error.byte:,})"
            raise DataError(f"{path.name}: not valid JSON {where}: {error.message}") from None
        except RecursionError:
            where = _after(number)
            raise DataError(f"{path.name}: JSON is nested too deeply {where}.") from None
        except OSError:
            raise unreadable(path) from None

    def _decoded(self, file: BinaryIO, block: int) -> Iterator[tuple[int, str, Any]]:
        if 0 not in self._offsets:
            self._offsets[0] = _first_element(file, self.paths[0])
        while block not in self._offsets:
            block -= 1
        number = block * STRIDE
        window = _Window(file, *self._offsets[block])
        if number == 0 and window.next() == "]":
            window.step()
        else:
            while True:
                window.next()
                if number % STRIDE == 0:
                    self._offsets.setdefault(number // STRIDE, (window.offset, window.line))
                yield number, *window.element()
                number += 1
                separator = window.next()
                if separator not in (",", "]"):
                    raise window.mistake("a record must be followed by , or ].")
                window.step()
                if separator == "]":
                    break
        if window.next():
            raise window.mistake("nothing may follow the list.")

    def _margin(self) -> str | None:
        """The line break and spaces before a record; None where all stand on one line."""
        with self.paths[0].open("rb") as file:
            start = re.match(rb"(?:\xef\xbb\xbf)?\s*\[[ \t]*\r?\n([ \t]*)", file.read(4096))
        return "\n" + start[1].decode() if start else None


class _Window:
    """The part of a text that is being read, and where it stands in the file."""

    def __init__(self, file: BinaryIO, offset: int, line: int) -> None:
        self.offset = offset
        self.line = line
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
                    raise self.mistake("mend the text there.", error.pos) from None
            except ValueError:
                raise self.mistake(LONG_NUMBER) from None
            else:
                # A number may be cut in two places: 1 of 1.5, 1 of 1e+5.
                if len(self._text) - end >= _LONGEST_TOKEN or self._ended:
                    text = self._text[self._position : end]
                    self._move(end)
                    return text, value
            self._grow()

    def mistake(self, message: str, position: int | None = None) -> _Mistake:
        """What is wrong at a position of the text; by default at this one."""
        position = self._position if position is None else position
        passed = self._text[self._position : position]
        return _Mistake(message, self.line + passed.count("\n"), self.offset + _size(passed))

    def _is_final(self, error: json.JSONDecodeError) -> bool:
        """Whether more text would not help."""
        length = len(self._text)
        cut = error.msg.startswith("Unterminated string") or length - error.pos < _LONGEST_TOKEN
        return not cut or length - self._position > MAX_RECORD_BYTES

    def _move(self, position: int) -> None:
        passed = self._text[self._position : position]
        self.offset += _size(passed)
        self.line += passed.count("\n")
        self._position = position

    def _grow(self) -> None:
        rest = self._text[self._position :]
        chunk = self._file.read(max(_CHUNK_BYTES, len(rest)))
        self._ended = not chunk
        self._text = rest + self._bytes.decode(chunk, final=self._ended)
        self._position = 0


def _first_element(file: BinaryIO, path: Path) -> tuple[int, int]:
    """Offset of what stands after the list's bracket, and its line.

    Raises:
        DataError: If the file holds no list.
    """
    head = file.read(4096)
    start = re.match(rb"(?:\xef\xbb\xbf)?\s*\[", head)
    if start is not None:
        return start.end(), 1 + start[0].count(b"\n")
    if all(key in head for key in _VQAV2_KEYS):
        raise DataError(f"{path.name}: {vqav2_refusal()}")
    raise DataError(f"{path.name} must hold a list of records; for one record a line use .jsonl.")


def _after(number: int) -> str:
    """The place behind a record; -1: in front of the first."""
    return f"after record {number}" if number >= 0 else "near its start"


def _size(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text.encode())


def _like(text: str, record: Any, place: Place, margin: str | None) -> bytes:
    """A record's JSON, laid out as it was."""
    if "\n" not in text or margin is None:
        return encoded(record, place)
    spaces = len(margin) - 1
    return encoded(record, place, spaces or None).replace(b"\n", margin.encode())
