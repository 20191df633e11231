"""`GET /metrics`: what the service does, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response

from server.routes.access import MetricsHere, Require
from server.routes.description import content

router = APIRouter(prefix="/metrics", dependencies=[Depends(Require("metrics:read"))])


_TEXT = content({"text/plain": {"type": "string"}}, "Prometheus' text format")


@router.get("", response_class=Response, responses={200: _TEXT})
def metrics(metrics: MetricsHere) -> Response:
    """Every metric; a plain function, because it may wait for the database."""
    return Response(metrics.text(), media_type=metrics.content_type)
