"""The gate in front of every address: request id, key, and length of the body.

It stands before routing and before a byte of the body is read, so an address that somebody
adds later is closed until it is listed in `PUBLIC`. Plain ASGI: it knows no web framework.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from server.config import is_loopback
from server.errors import (
    BodyTooLarge,
    HostRefused,
    HttpError,
    InvalidKey,
    MissingKey,
    OriginRefused,
    ServerError,
)
from server.security.keys import SCOPES, Authenticator, Principal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PUBLIC = frozenset({"/health", "/health/ready"})
"""Addresses that need no key. Every other one does, whether it exists or not."""

METRICS = "/metrics"
"""Needs a key too, unless the operator has said otherwise for this machine."""

DOCS = frozenset({"/docs", "/openapi.json"})
"""The description of the API; needs a key too, unless the operator has said otherwise."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_DRAIN_SECONDS = 5.0
_POLICY_VIOLATION = 1008
_EVERYBODY = Principal("none", "no authentication", frozenset(SCOPES))
_READER = Principal("none", "no authentication", frozenset({"metrics:read"}))
_VISITOR = Principal("none", "no authentication", frozenset({"infer"}))


class Gate:
    """Refuses who may not ask; marks the request with its id and its owner.

    Args:
        app: What stands behind the gate; finds `request_id` and `principal` in the request's
            state.
        keys: Who has which key; None lets everybody in who is on this machine.
        max_body: Bytes of a body that declares its length. Others are counted behind the gate.
        larger: Limits of their own, by method and path.
        public_metrics: Whether this machine may read the metrics without a key.
        public_docs: Whether everybody may read the description of the API.
    """

    def __init__(
        self,
        app: App,
        *,
        keys: Authenticator | None,
        max_body: int,
        larger: Mapping[tuple[str, str], int] | None = None,
        public_metrics: bool = False,
        public_docs: bool = False,
    ) -> None:
        self._app = app
        self._keys = keys
        self._max_body = max_body
        self._larger = larger or {}
        self._public_metrics = public_metrics
        self._public_docs = public_docs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(reversed(scope["headers"]))
        request_id = _request_id(headers)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            principal = self._admit(scope["path"], headers)
            _check_address(scope)
            self._check_length(scope, headers)
        except ServerError as error:
            await self._drain(headers, receive)
            await _refuse(error, send_with_id)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["principal"] = principal
        await self._app(scope, receive, send_with_id)

    def _admit(self, path: str, headers: dict[bytes, bytes]) -> Principal | None:
        here = is_loopback(_host(headers.get(b"host", b"")))
        if self._keys is None:
            # A page on the web can point its own name at 127.0.0.1 (DNS rebinding).
            if not here:
                raise HostRefused
            # And browsers send forms and other simple requests of any page without asking first.
            if _of_another_page(headers):
                raise OriginRefused
            return _EVERYBODY
        if path in PUBLIC:
            return None
        if path == METRICS and self._public_metrics and here:
            return _READER
        if path in DOCS and self._public_docs:
            return _VISITOR
        scheme, _, secret = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise MissingKey
        principal = self._keys.authenticate(secret.strip())
        if principal is None:
            raise InvalidKey
        return principal

    def _check_length(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        limit = self._larger.get((scope["method"], scope["path"]), self._max_body)
        if _content_length(headers) > limit:
            what = "fewer or smaller images" if limit == self._max_body else "a smaller file"
            raise BodyTooLarge(f"A body may have at most {limit:,} bytes. Send {what}.")

    async def _drain(self, headers: dict[bytes, bytes], receive: Receive) -> None:
        """Throws away the body of a refused request: who is still sending reads no answer."""
        length = _content_length(headers)
        if length == 0 or b"expect" in headers or length > 4 * self._max_body:
            return
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while (await receive()).get("more_body", False):
                    pass
        except TimeoutError:
            return


async def _refuse(error: ServerError, send: Send) -> None:
    body = error.envelope.model_dump_json().encode()
    extra: Iterable[tuple[str, str]] = error.headers.items()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(name.encode(), value.encode()) for name, value in extra]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _check_address(scope: Scope) -> None:
    """Refuses what no id or name can hold, and no database takes.

    Raises:
        HttpError: If there is a NUL character in the path or the query.
    """
    if "\0" in scope["path"] or b"%00" in scope.get("query_string", b""):
        raise HttpError("The address has a NUL character in it; no id or name has one.")


def _request_id(headers: dict[bytes, bytes]) -> str:
    sent = headers.get(b"x-request-id", b"")
    return sent.decode() if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


def _content_length(headers: dict[bytes, bytes]) -> int:
    value = headers.get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0


def _of_another_page(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser says that a page of another site or port has made the request.

    Programs send neither header. Old browsers send `origin` alone, and only with requests that may
    change something; then a page on another port of this machine is let in.
    """
    if headers.get(b"sec-fetch-site", b"") in (b"cross-site", b"same-site"):
        return True
    origin = headers.get(b"origin")
    return origin is not None and not is_loopback(_host(origin.partition(b"://")[2]))


def _host(header: bytes) -> str:
    """Name in a `host` header, its port left out."""
    host = header.decode("latin-1")
    return host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
