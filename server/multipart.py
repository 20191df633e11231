"""Reads the form of an upload piece by piece: small fields into memory, the file to a sink.

Plain bytes in, plain values out; no web framework. Nothing is spooled to a temporary file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.errors import InvalidBody, InvalidRequest, UnsupportedMediaType

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE_FIELD = "file"

_FIELD_BYTES = 1_024
_PARTS = 16
_HEADERS = 16
_FILENAME_CHARACTERS = 255
_FALLBACK_NAME = "upload"


@dataclass(frozen=True)
class Form:
    """What came with the file.

    Attributes:
        fields: The other fields by name.
        filename: What the sender calls the file; its last part, safe to show, not a path.
    """

    fields: dict[str, str]
    filename: str


class UploadForm:
    """A `multipart/form-data` body that arrives in chunks.

    Args:
        content_type: The request's header.
        sink: Takes the bytes of the field `file` as they come.
        check: Called with the name and value of every other field as it ends, so that a bad one
            is refused before the file is read.

    Raises:
        UnsupportedMediaType: If the body is not declared as such a form.
    """

    def __init__(
        self,
        content_type: str,
        sink: Callable[[bytes], object],
        check: Callable[[str, str], None],
    ) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise UnsupportedMediaType(
                "Send a form: the header content-type: multipart/form-data, with the fields "
                "purpose and file."
            )
        self._sink = sink
        self._check = check
        self._fields: dict[str, str] = {}
        self._filename: str | None = None
        self._parts = 0
        self._ended = False
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._name = ""
        self._value = bytearray()
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_end": self._finish,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks, max_header_count=_HEADERS)
        except FormParserError:
            raise _unreadable() from None

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the body.

        Raises:
            InvalidBody: If they are no form.
            InvalidRequest: If a field is unknown, twice there or too long.
        """
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise _unreadable() from None

    def close(self) -> Form:
        """Ends the body.

        Raises:
            InvalidBody: If it is cut off.
            InvalidRequest: If the file is missing.
        """
        if not self._ended:
            raise _unreadable()
        if self._filename is None:
            raise InvalidRequest("file is missing.", param=FILE_FIELD)
        return Form(self._fields, self._filename)

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _PARTS:
            raise InvalidRequest(f"A form may have at most {_PARTS} fields.")
        self._disposition = b""
        self._value.clear()

    def _header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        name.clear()
        value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if not self._name:
            raise _unreadable()
        if self._name in self._fields or (self._is_file and self._filename is not None):
            raise InvalidRequest(f"{_shown(self._name)} is there twice.", param=_shown(self._name))
        if self._is_file:
            self._filename = _safe_filename(options.get(b"filename", b""))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._sink(data[start:end])
            return
        self._value.extend(data[start:end])
        if len(self._value) > _FIELD_BYTES:
            name = _shown(self._name)
            raise InvalidRequest(f"{name} is longer than {_FIELD_BYTES} bytes.", param=name)

    def _end(self) -> None:
        if not self._is_file:
            self._fields[self._name] = self._value.decode("utf-8", "replace")
            self._check(self._name, self._fields[self._name])

    def _finish(self) -> None:
        self._ended = True

    @property
    def _is_file(self) -> bool:
        return self._name == FILE_FIELD


def _unreadable() -> InvalidBody:
    return InvalidBody("The form cannot be read: it is damaged or cut off.")


def _shown(name: str) -> str:
    """A field's name as an error may repeat it."""
    return "".join(character for character in name[:64] if character.isprintable())


def _safe_filename(sent: bytes) -> str:
    name = sent.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    printable = "".join(character for character in name if character.isprintable())
    return printable.strip()[:_FILENAME_CHARACTERS] or _FALLBACK_NAME
