from __future__ import annotations

import json

import pytest

from purifier.errors import DataError, PurifierError, RowError
from purifier.messages import (
    MOST_OF_A_MESSAGE,
    MOST_OF_A_PARAM,
    bounded,
    kind_name,
    quoted,
)
from server.app import refusal_of
from server.errors import InvalidRequest, ServerError
from server.jobs.spec import JobSpec

LONG = "x" * 4_000_000


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    assert bounded("short") == "short"
    assert bounded("a" * 2000) == "a" * 2000
    text = bounded(f"first {LONG} last", 60)
    assert len(text) == 60
    assert text.startswith("first x")
    assert text.endswith("x last")
    assert "[...]" in text


def test_values_are_quoted_up_to_a_length() -> None:
    assert quoted("a'b") == '"a\'b"'
    assert quoted(LONG, 3) == "'xxx'... (4,000,000 characters)"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "null"),
        (True, "true or false"),
        (float("nan"), "NaN"),
        ("x", "text"),
        (1, "a number"),
        (1.5, "a number"),
        ([], "a list"),
        ({}, "an object"),
        (b"", "a bytes"),
    ],
)
def test_values_have_names(value: object, name: str) -> None:
    assert kind_name(value) == name


@pytest.mark.parametrize(
    "error",
    [
        PurifierError(f"{LONG} must be mended.", param=LONG),
        DataError(f"{LONG} must be mended.", param=LONG),
        RowError(f"{LONG} must be mended.", reason="malformed", param=LONG),
        ServerError(f"{LONG} must be mended.", param=LONG),
        InvalidRequest(f"{LONG} must be mended.", param=LONG),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_repeat_a_bounded_part_of_an_input(error: PurifierError | ServerError) -> None:
    assert len(error.message) <= MOST_OF_A_MESSAGE
    assert len(str(error)) <= MOST_OF_A_MESSAGE
    assert error.message.endswith("must be mended.")
    assert error.param is not None
    assert len(error.param) <= MOST_OF_A_PARAM


def test_a_request_with_a_long_field_is_not_repeated() -> None:
    error = refusal_of([{"type": "extra_forbidden", "loc": ("body", LONG)}])
    assert len(json.dumps(error.envelope.model_dump())) < 2 * MOST_OF_A_MESSAGE + 500
    with pytest.raises(ServerError) as caught:
        JobSpec.from_dict({LONG: 1})
    assert len(caught.value.message) <= MOST_OF_A_MESSAGE
