"""Base64 is read where its bytes are certain, and refused with the cause where they are not."""

from __future__ import annotations

import base64
import textwrap
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purifier.base64_text import canonical_base64
from purifier.errors import InvalidBase64

BYTES = st.binary(min_size=1, max_size=300)


def read(text: str) -> bytes:
    return base64.b64decode(canonical_base64(text), validate=True)


def outcome(text: str) -> tuple[str, str | None]:
    """What is read, or why nothing is."""
    try:
        return canonical_base64(text), None
    except InvalidBase64 as error:
        return "", error.message


@given(data=BYTES, width=st.integers(1, 80), end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_wrapped(data: bytes, width: int, end: str) -> None:
    lines = textwrap.wrap(base64.b64encode(data).decode(), width)
    assert read(end.join(lines)) == data
    assert read(end.join(lines) + end) == data
    assert read(end.join(f"  {line}\t" for line in lines)) == data


@given(data=BYTES)
def test_url_safe_unpadded_and_percent_encoded(data: bytes) -> None:
    standard, safe = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
    for text in (standard, safe):
        assert read(text) == data
        assert read(text.rstrip("=")) == data
        assert read(quote(text, safe="")) == data
        assert read(f"\n {text} \n") == data


@given(text=st.text(alphabet="AZaz09+/-_=% \t\r\n*é\x00", max_size=60))
def test_anything_is_read_or_refused(text: str) -> None:
    canonical, why = outcome(text)
    if why is None:
        base64.b64decode(canonical, validate=True)
    else:
        assert 10 < len(why) < 120


DOUBTFUL = {
    "cut-off": ("AAAAA", "cut off"),
    "two-alphabets": ("AA+A-AAA", "mixes"),
    "lost-plus": ("AAA AAAA", "space"),
    "foreign": ("AA*A", "'*' at position 3"),
    "not-ascii": ("AAé=", "a character at position 3"),
    "control": ("AA\x00A", "a character at position 3"),
    "too-much-padding": ("AAA==", "ends with 2 = where 1 belong"),
    "padding-of-nothing": ("AAAA=", "ends with 1 = where 0 belong"),
    "goes-on": ("AA==AAAA", "after its padding"),
    "broken-escape": ("AAA%3", "percent sign"),
}


@pytest.mark.parametrize(("text", "why"), DOUBTFUL.values(), ids=DOUBTFUL.keys())
def test_the_cause_is_named(text: str, why: str) -> None:
    with pytest.raises(InvalidBase64, match=why.replace("*", r"\*")):
        canonical_base64(text)


def test_long_texts_take_linear_time() -> None:
    """A quadratic search would not come back: the longest body is 20 MB."""
    for text in (" " * 5_000_000 + "A", "A\n" * 5_000_000, "A" * 5_000_000 + "*", "=" * 5_000_000):
        assert any(outcome(text))
