"""`GET /v1/audit`: who changed what."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from server.errors import NotFound
from server.routes.access import Require, ServicesHere
from server.routes.description import refusals
from server.schemas.checkpoints import AuditEntry, AuditPage

router = APIRouter(prefix="/v1/audit", dependencies=[Depends(Require("audit:read"))])


@router.get("", responses=refusals(NotFound))
def list_entries(
    services: ServicesHere,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> AuditPage:
    """Rows numbered above `after`, in order."""
    if services.audit is None:
        raise NotFound("This server keeps no audit log.")
    rows = services.audit.list(after=after, limit=limit + 1)
    entries = []
    for row in rows[:limit]:
        values = asdict(row)
        entries.append(AuditEntry(target=values.pop("object"), **values))
    return AuditPage(data=entries, has_more=len(rows) > limit)
