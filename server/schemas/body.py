"""What every JSON body of a request has in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class RequestBody(BaseModel):
    """A JSON body of which every text is Unicode.

    JSON can write half of a surrogate pair, which no UTF-8 text holds: neither a tokenizer nor a
    database nor an answer takes it.
    """

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _is_unicode(cls, body: Any) -> Any:
        if not all(map(_encodes, _texts(body))):
            raise PydanticCustomError("unicode", "It holds half of a surrogate pair, no character.")
        return body


class StoredBody(RequestBody):
    """A JSON body whose texts go into the database; PostgreSQL takes no NUL character."""

    @model_validator(mode="before")
    @classmethod
    def _has_no_nul(cls, body: Any) -> Any:
        if any("\0" in text for text in _texts(body)):
            raise PydanticCustomError("nul", "It has a NUL character in a text; remove it.")
        return body


def _texts(value: Any) -> list[str]:
    """Every text of a JSON value, names of fields included."""
    found: list[str] = []
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, dict):
            rest += one.keys()
            rest += one.values()
        elif isinstance(one, list):
            rest += one
    return found


def _encodes(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
