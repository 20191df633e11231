"""A file of the disk as an answer: whole, or the one range of it that was asked for."""

from __future__ import annotations

import os
import re

import anyio.to_thread
from fastapi.responses import FileResponse
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from server.errors import RangeNotSatisfiable

_ONE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class StoredFile(FileResponse):
    """A file whose `range` header is one range of bytes; any other is ignored, as RFC 9110 allows.

    Raises:
        RangeNotSatisfiable: When it is sent, if the range begins behind the file's end.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        wanted = headers.get("range")
        if wanted is not None:
            size = (await anyio.to_thread.run_sync(os.stat, self.path)).st_size
            satisfiable = _satisfiable(wanted, size)
            if satisfiable is False and "if-range" not in headers:
                raise RangeNotSatisfiable(
                    f"The file has {size:,} bytes; ask for a range of them.", param="range"
                )
            if not satisfiable:
                kept = [pair for pair in scope["headers"] if pair[0] != b"range"]
                scope = {**scope, "headers": kept}
        await super().__call__(scope, receive, send)


def _satisfiable(wanted: str, size: int) -> bool | None:
    """Whether a file has anything of a range; None if the header is not one range of bytes."""
    match = _ONE_RANGE.fullmatch(wanted.strip())
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return int(last) > 0 and size > 0
    if last and int(last) < int(first):
        return None
    return int(first) < size
