"""`client.audit`: who changed what."""

from __future__ import annotations

from clients._call import Call, reader
from clients._transport import AsyncTransport, Transport
from server.schemas.checkpoints import AuditPage


class Audit:
    """Reads the audit log; needs a key with the scope `audit:read`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, after: int = 0, limit: int | None = None) -> AuditPage:
        """A page of the log, oldest row first.

        Args:
            after: Number of the last row of the page before.
            limit: Most rows on it, at most 1000; 100 by default.
        """
        return self._transport.run(page(after, limit))


class AsyncAudit:
    """Reads the audit log; needs a key with the scope `audit:read`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self, *, after: int = 0, limit: int | None = None) -> AuditPage:
        """A page of the log, oldest row first.

        Args:
            after: Number of the last row of the page before.
            limit: Most rows on it, at most 1000; 100 by default.
        """
        return await self._transport.run(page(after, limit))


def page(after: int, limit: int | None) -> Call[AuditPage]:
    """The rows numbered above `after`."""
    query = {"after": after, "limit": limit}
    return Call("GET", "/v1/audit", reader(AuditPage), query=query, repeatable=True)
