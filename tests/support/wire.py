"""Images, answers and transports for tests of the clients."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from operator import attrgetter
from typing import Any

import httpx
from PIL import Image

from clients import AsyncClient, Client

Handler = Callable[[httpx.Request], httpx.Response]


def picture(kind: str = "PNG", size: tuple[int, int] = (12, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, format=kind)
    return buffer.getvalue()


class Caller:
    """Calls one method of a client of either kind over a transport of the test's own."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, handler: Handler, method: str, *args: Any, **kwargs: Any) -> Any:
        options = kwargs.pop("options", {})
        base_url = options.pop("base_url", "http://server.test")
        options["transport"] = httpx.MockTransport(handler)
        return talk(self.kind, base_url, "sk-test", options, method, *args, **kwargs)


def talk(
    kind: str,
    base_url: str,
    key: str,
    options: dict[str, Any],
    method: str,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Calls one method, such as `jobs.create`, of a `sync` or `async` client of its own.

    A stream comes back as the list of all that came.
    """
    name = attrgetter(method)
    if kind == "sync":
        with Client(base_url, key, **options) as client:
            result = name(client)(*args, **kwargs)
            return list(result) if isinstance(result, Iterator) else result

    async def run() -> Any:
        async with AsyncClient(base_url, key, **options) as client:
            result = name(client)(*args, **kwargs)
            if isinstance(result, AsyncIterator):
                return [item async for item in result]
            return await result

    return asyncio.run(run())


def chat_response(**defense: Any) -> dict[str, Any]:
    """An answer as the server's schema has it."""
    report = {"applied": True, "checkpoint": "demo@sha256:0", "timings": {"total": 1.0}}
    return {
        "id": "chatcmpl-1",
        "created": 1,
        "model": "default",
        "system_fingerprint": "demo@sha256:0",
        "choices": [{"message": {"content": "a red coat"}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 3,
            "total_tokens": 12,
            "visual_tokens": 4,
            "steps": 3,
        },
        "defense": report | defense,
    }


def sent(request: httpx.Request) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(request.content)
    return body


def decoded(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2], validate=True)
