"""Where the server is and how patiently it is asked."""

from __future__ import annotations

import os
from dataclasses import dataclass

import httpx

from clients._exceptions import InvalidInput
from clients._retry import Retries
from clients._version import version

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = httpx.Timeout(600.0, connect=5.0)


@dataclass(frozen=True)
class Settings:
    """What every request of a client shares.

    Attributes:
        base_url: The server, without `/v1`.
        api_key: Key sent as bearer token; None sends none.
        retries: How often a request may be tried again.
    """

    base_url: httpx.URL
    api_key: str | None
    retries: Retries


def resolve(
    base_url: str | None, api_key: str | None, max_retries: int, max_wait: float
) -> Settings:
    """Fills in the environment: `DISP_BASE_URL`, `DISP_API_KEY`.

    Raises:
        InvalidInput: If the base URL is not an http or https URL, or a number is negative.
    """
    text = base_url or os.environ.get("DISP_BASE_URL") or DEFAULT_BASE_URL
    try:
        url = httpx.URL(text.rstrip("/").removesuffix("/v1"))
    except httpx.InvalidURL:
        raise InvalidInput(f"base_url is not a URL: {text!r}.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInput(f"base_url must start with http:// or https://, not {text!r}.")
    if max_retries < 0 or max_wait < 0:
        raise InvalidInput("max_retries and max_wait must not be negative.")
    key = api_key or os.environ.get("DISP_API_KEY") or None
    if key is not None and not (key.isascii() and key.isprintable()):
        raise InvalidInput("api_key holds characters that cannot be sent in a header.")
    return Settings(base_url=url, api_key=key, retries=Retries(max_retries, max_wait))


def headers(settings: Settings) -> dict[str, str]:
    """Headers of every request."""
    common = {"accept": "application/json", "user-agent": f"disp-client/{version()}"}
    if settings.api_key is not None:
        common["authorization"] = f"Bearer {settings.api_key}"
    return common
