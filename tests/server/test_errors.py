"""One tree, one shape, and wire types that say what the purifier says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest

from purifier.defense import config as defense_config
from purifier.denoise import config as denoise_config
from server import errors, schemas
from server.app import param_of, refusal_of
from server.schemas import chat, defense
from server.security.keys import SCOPES


def tree(root: type[errors.ServerError]) -> Iterator[type[errors.ServerError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


ALL = list(tree(errors.ServerError))


def test_every_code_has_its_class() -> None:
    assert sorted(kind.code for kind in ALL) == sorted(get_args(schemas.ErrorCode))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_error_fits_the_envelope(kind: type[errors.ServerError]) -> None:
    error = kind("What is wrong.", param="field", retry_after=3)
    assert 400 <= error.status < 600
    assert error.envelope.model_dump() == {
        "error": {
            "message": "What is wrong.",
            "type": error.type,
            "param": "field",
            "code": error.code,
        }
    }
    assert error.headers["retry-after"] == "3"
    assert ("x-should-retry" in error.headers) is not kind.retryable
    assert kind.retryable is (error.status in (429, 503))


def test_wire_types_name_what_the_purifier_knows() -> None:
    assert get_args(defense.Level) == get_args(defense_config.Level)
    assert get_args(defense.Ranker) == get_args(defense_config.RankerName)
    assert get_args(chat.CacheName) == get_args(denoise_config.CacheName)
    assert get_args(chat.Remasking) == get_args(denoise_config.Remasking)
    assert len(SCOPES) == 7


@pytest.mark.parametrize(
    ("location", "param"),
    [
        (("body",), None),
        (("body", "messages", 0, "role"), "messages[0].role"),
        (("body", "messages", 0, "content", 1, "text", "text"), "messages[0].content[1].text"),
        (
            ("body", "messages", 2, "content", 1, "image_url", "image_url", "url"),
            "messages[2].content[1].image_url.url",
        ),
        (("body", "defense", "ratio"), "defense.ratio"),
    ],
)
def test_param_is_a_path_in_the_body(location: tuple[str | int, ...], param: str | None) -> None:
    assert param_of(location) == param


def test_input_is_not_repeated() -> None:
    secret = "what the user typed"
    found = {"type": "int_type", "loc": ("body", "steps"), "msg": "Should be int", "input": secret}
    assert secret not in refusal_of([found]).message
