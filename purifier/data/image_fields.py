"""Where a record names its images: file names, data URLs, base64 text, encoded bytes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from purifier.data.base64_text import LONGEST_NAME, decoded, is_image_text
from purifier.data.json_text import unpacked
from purifier.data.sample import Place
from purifier.errors import RowError
from purifier.messages import kind_name

IMAGE_KEYS = ("image", "img", "images", "file_name", "file_names")
"""Keys that name a record's images, in the order in which they are looked for."""

_DATA_URL = "data:"


def listed_images(record: Mapping[str, Any], place: Place) -> tuple[str | bytes, ...]:
    """The images that a record lists.

    A list or one of: a file name, a data URL, base64 text, bytes, or Hugging Face's struct
    `{"bytes": ..., "path": ...}` (its path counts where it has no bytes). A list or a struct may
    be written as JSON text.

    Raises:
        RowError: `malformed` if a value is none of these, as a null in a list is;
            `undecodable_image` if it is text that is neither a name nor base64.
    """
    field = next((key for key in IMAGE_KEYS if unpacked(record.get(key)) not in (None, [])), None)
    if field is None:
        return ()
    value = record[field]
    listed = unpacked(value)
    if not isinstance(listed, list):
        return (one_image(listed, field, place),)
    return tuple(
        one_image(item, field, place, f"{field}[{number}]") for number, item in enumerate(listed)
    )


def has_null_image(record: Mapping[str, Any]) -> bool:
    """Whether a record has a place for an image and nothing there."""
    present = [record[key] for key in IMAGE_KEYS if key in record]
    return bool(present) and all(value is None for value in present)


def one_image(value: Any, field: str, place: Place, name: str | None = None) -> str | bytes:
    """One image: a file name, or bytes.

    Args:
        value: What the record has there.
        field: The field, for the error.
        place: Where the record was read.
        name: What the message calls the field; `field` by default.

    Raises:
        RowError: `malformed` if it is neither, `undecodable_image` if it is text that is neither
            a name nor base64.
    """
    where = f"{place}: {name or field}"
    encoded = False
    if isinstance(value, dict):
        encoded = bool(value.get("bytes"))
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if value is None or value in ("", b""):
        raise RowError(
            f"{where} is empty; it must be a file name or an image, and a row without an image "
            "must not have the field.",
            reason="malformed",
            param=field,
        )
    if not isinstance(value, str):
        raise RowError(
            f"{where} must be a file name, base64 text or a list of them, not {kind_name(value)}.",
            reason="malformed",
            param=field,
        )
    if value[: len(_DATA_URL)].lower() == _DATA_URL:
        return _of_data_url(value, where, field)
    if encoded or is_image_text(value) or _is_no_name(value):
        return _of_base64(value, where, field)
    return value


def data_url(data: bytes) -> str:
    """An encoded image as text; `one_image` gives the bytes back."""
    return f"{_DATA_URL};base64,{base64.b64encode(data).decode()}"


def _is_no_name(text: str) -> bool:
    """Whether a text is too long for a file name or an address of one."""
    return len(text) > LONGEST_NAME and "://" not in text[:16]


def _of_base64(text: str, where: str, field: str) -> bytes:
    data = decoded(text)
    if not data:
        raise _undecodable(
            f"{where} is a text of {len(text):,} characters, which is neither a file name nor "
            "base64; it is damaged or was cut.",
            field,
        )
    return data


def _of_data_url(url: str, where: str, field: str) -> bytes:
    head, _, text = url.partition(",")
    data = decoded(text) if head.lower().endswith(";base64") else None
    if not data:
        raise _undecodable(
            f"{where} must be a data URL in base64: data:image/png;base64,...", field
        )
    return data


def _undecodable(message: str, field: str) -> RowError:
    return RowError(message, reason="undecodable_image", param=field)
