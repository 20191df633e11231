"""`client.checkpoints`: what can serve, and what does."""

from __future__ import annotations

from clients import _checkpoint_calls as calls
from clients._transport import AsyncTransport, Transport
from server.schemas.checkpoints import Checkpoint, CheckpointDeleted, CheckpointList


class Checkpoints:
    """Lists and deletes checkpoints and changes which of them serves."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> CheckpointList:
        """Every checkpoint, the latest first, and which of them serves."""
        return self._transport.run(calls.every())

    def activate(self, checkpoint: str, *, force: bool = False) -> Checkpoint:
        """Puts a checkpoint into service; returns once it answers.

        Args:
            checkpoint: Its id, `name@sha256:...`.
            force: Whether to do so although its evaluation failed.

        Raises:
            Conflict: If it is damaged, failed its gate or its first question; nothing has
                changed then.
        """
        return self._transport.run(calls.activate(checkpoint, force))

    def delete(self, checkpoint: str) -> CheckpointDeleted:
        """Removes a checkpoint that nothing needs any more.

        Raises:
            Conflict: If it serves or served last, others stand on it, or a job needs it.
        """
        return self._transport.run(calls.delete(checkpoint))

    def rollback(self) -> Checkpoint:
        """Brings the checkpoint back that served before; returns once it answers.

        Raises:
            Conflict: If there is none.
        """
        return self._transport.run(calls.rollback())


class AsyncCheckpoints:
    """Lists and deletes checkpoints and changes which of them serves."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self) -> CheckpointList:
        """Every checkpoint, the latest first, and which of them serves."""
        return await self._transport.run(calls.every())

    async def activate(self, checkpoint: str, *, force: bool = False) -> Checkpoint:
        """Puts a checkpoint into service; returns once it answers.

        Args:
            checkpoint: Its id, `name@sha256:...`.
            force: Whether to do so although its evaluation failed.

        Raises:
            Conflict: If it is damaged, failed its gate or its first question; nothing has
                changed then.
        """
        return await self._transport.run(calls.activate(checkpoint, force))

    async def delete(self, checkpoint: str) -> CheckpointDeleted:
        """Removes a checkpoint that nothing needs any more.

        Raises:
            Conflict: If it serves or served last, others stand on it, or a job needs it.
        """
        return await self._transport.run(calls.delete(checkpoint))

    async def rollback(self) -> Checkpoint:
        """Brings the checkpoint back that served before; returns once it answers.

        Raises:
            Conflict: If there is none.
        """
        return await self._transport.run(calls.rollback())
