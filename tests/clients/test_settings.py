from __future__ import annotations

import pytest

from clients import InvalidInput
from clients._settings import DEFAULT_BASE_URL, resolve


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISP_BASE_URL", raising=False)
    monkeypatch.delenv("DISP_API_KEY", raising=False)


def test_defaults() -> None:
    settings = resolve(None, None, 2, 60.0)
    assert str(settings.base_url) == DEFAULT_BASE_URL
    assert settings.api_key is None


def test_environment_fills_in_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISP_BASE_URL", "http://from.env:1")
    monkeypatch.setenv("DISP_API_KEY", "sk-env")
    assert str(resolve(None, None, 0, 0).base_url) == "http://from.env:1"
    assert resolve(None, None, 0, 0).api_key == "sk-env"
    settings = resolve("http://argument:2", "sk-argument", 0, 0)
    assert (str(settings.base_url), settings.api_key) == ("http://argument:2", "sk-argument")


@pytest.mark.parametrize("url", ["http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_base_url_with_or_without_version(url: str) -> None:
    assert str(resolve(url, None, 0, 0).base_url) == "http://h:1"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://h", "http://", "http://h:port", "/v1"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="base_url"):
        resolve(url, None, 0, 0)


@pytest.mark.parametrize("key", ["sk-ä", "sk-a\nx-evil: 1"])
def test_a_key_that_is_no_header_is_refused(key: str) -> None:
    with pytest.raises(InvalidInput, match="api_key"):
        resolve(None, key, 0, 0)


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(InvalidInput, match="negative"):
        resolve(None, None, -1, 0)
