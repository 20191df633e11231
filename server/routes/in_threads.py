"""Contexts that work with the disk, for routes that must not wait for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync

T = TypeVar("T")


@asynccontextmanager
async def in_threads(context: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enters and leaves a context in threads; leaves it to its end, whatever is cancelled."""
    with anyio.CancelScope(shield=True):
        value = await run_sync(context.__enter__)
    try:
        yield value
    except BaseException as raised:
        if not await _left(context, raised):
            raise
    else:
        await _left(context, None)


async def _left(context: AbstractContextManager[T], error: BaseException | None) -> bool:
    """Leaves a context with an error or without; whether the error ends there."""
    trace = None if error is None else error.__traceback__
    leave = partial(context.__exit__, None if error is None else type(error), error, trace)
    with anyio.CancelScope(shield=True):
        ended = await run_sync(leave)
    return bool(ended)
