"""Sends calls, blocking or not; everything else the two clients share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

import httpx

from clients._call import Call, build, retries
from clients._exchange import Pause, exchange
from clients._follow import QUIET_SECONDS, EventStream
from clients._settings import Settings, headers
from server.schemas.jobs import JobEvent

T = TypeVar("T")


class Transport:
    """Sends calls and waits for their answers.

    Args:
        settings: What every request shares.
        timeout: Seconds, or httpx's finer settings.
        transport: Replaces the network.
    """

    def __init__(
        self,
        settings: Settings,
        timeout: float | httpx.Timeout,
        transport: httpx.BaseTransport | None,
    ) -> None:
        self._settings = settings
        self._http = httpx.Client(
            base_url=settings.base_url,
            headers=headers(settings),
            timeout=timeout,
            transport=transport,
        )

    def run(self, call: Call[T]) -> T:
        """Does one operation, with its retries."""
        request = build(call, self._http)
        steps = exchange(request, call.read, retries(call, self._settings))
        outcome: httpx.Response | httpx.TransportError | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                result: T = done.value
                return result
            outcome = None
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                continue
            try:
                outcome = self._http.send(step)
            except httpx.TransportError as error:
                outcome = error

    def follow(self, stream: EventStream) -> Iterator[JobEvent]:
        """Reads a stream of events to its end, over as many connections as it takes."""
        while True:
            request = build(stream.call(), self._http)
            request.extensions["timeout"] = _quiet(self._http.timeout)
            try:
                response = self._http.send(request, stream=True)
                try:
                    if not response.is_success:
                        response.read()
                    else:
                        for line in response.iter_lines():
                            event = stream.feed(line)
                            if event is not None:
                                yield event
                            if stream.done:
                                return
                finally:
                    response.close()
                pause = stream.pause_after(response)
            except httpx.TransportError as error:
                pause = stream.pause_after_break(request, error)
            time.sleep(pause)

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()


class AsyncTransport:
    """Sends calls without blocking the event loop; see `Transport`."""

    def __init__(
        self,
        settings: Settings,
        timeout: float | httpx.Timeout,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self._settings = settings
        self._http = httpx.AsyncClient(
            base_url=settings.base_url,
            headers=headers(settings),
            timeout=timeout,
            transport=transport,
        )

    async def run(self, call: Call[T]) -> T:
        """Does one operation, with its retries."""
        request = build(call, self._http)
        steps = exchange(request, call.read, retries(call, self._settings))
        outcome: httpx.Response | httpx.TransportError | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                result: T = done.value
                return result
            outcome = None
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                continue
            try:
                outcome = await self._http.send(step)
            except httpx.TransportError as error:
                outcome = error

    async def follow(self, stream: EventStream) -> AsyncIterator[JobEvent]:
        """Reads a stream of events to its end, over as many connections as it takes."""
        while True:
            request = build(stream.call(), self._http)
            request.extensions["timeout"] = _quiet(self._http.timeout)
            try:
                response = await self._http.send(request, stream=True)
                try:
                    if not response.is_success:
                        await response.aread()
                    else:
                        async for line in response.aiter_lines():
                            event = stream.feed(line)
                            if event is not None:
                                yield event
                            if stream.done:
                                return
                finally:
                    await response.aclose()
                pause = stream.pause_after(response)
            except httpx.TransportError as error:
                pause = stream.pause_after_break(request, error)
            await asyncio.sleep(pause)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()


def _quiet(timeout: httpx.Timeout) -> dict[str, float | None]:
    """The client's timeouts, but no longer silence than a living stream can have."""
    read = QUIET_SECONDS if timeout.read is None else min(QUIET_SECONDS, timeout.read)
    return {**timeout.as_dict(), "read": read}
