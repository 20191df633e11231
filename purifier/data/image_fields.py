"""Where a record names its images: file names, data URLs, encoded bytes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from purifier.data.sample import Place
from purifier.errors import RowError

IMAGE_KEYS = ("image", "img", "images", "file_name", "file_names")
"""Keys that name a record's images, in the order in which they are looked for."""

_DATA_URL = "data:"


def listed_images(record: Mapping[str, Any], place: Place) -> tuple[str | bytes, ...]:
    """The images that a record lists.

    A list or one of: a file name, a data URL, bytes, or Hugging Face's struct
    `{"bytes": ..., "path": ...}` (its path counts where it has no bytes).

    Raises:
        RowError: `malformed` if a value is none of these.
    """
    field = next((key for key in IMAGE_KEYS if record.get(key) is not None), None)
    if field is None:
        return ()
    value = record[field]
    values = value if isinstance(value, list) else [value]
    return tuple(one_image(item, field, place) for item in values)


def one_image(value: Any, field: str, place: Place) -> str | bytes:
    """One image: a file name, or bytes.

    Raises:
        RowError: `malformed` if it is neither, `undecodable_image` if it is a data URL that
            holds no base64.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value:
        raise RowError(
            f"{place}: {field} must be a file name or a list of them.",
            reason="malformed",
            param=field,
        )
    if value[: len(_DATA_URL)].lower() == _DATA_URL:
        return _decoded(value, field, place)
    return value


def data_url(data: bytes) -> str:
    """An encoded image as text; `one_image` gives the bytes back."""
    return f"{_DATA_URL};base64,{base64.b64encode(data).decode()}"


def _decoded(url: str, field: str, place: Place) -> bytes:
    head, _, text = url.partition(",")
    try:
        data = base64.b64decode(text, validate=True) if head.endswith(";base64") else b""
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise RowError(
            f"{place}: {field} must be a data URL in base64: data:image/png;base64,...",
            reason="undecodable_image",
            param=field,
        )
    return data
