"""`GET /openapi.json` and `GET /docs`: what this service takes and answers."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse

from server.routes.access import Require
from server.routes.description import Document, content
from server.routes.docs_page import page_of

router = APIRouter(dependencies=[Depends(Require("infer"))])

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
"""The page has no script and loads nothing, from here or anywhere else."""


def _document_of(request: Request) -> Document:
    return cast("Document", request.app.state.description())


DocumentHere = Annotated[Document, Depends(_document_of)]

_JSON = content({"application/json": {"type": "object"}}, "An OpenAPI 3.1 document")
_HTML = content({"text/html": {"type": "string"}}, "A page without scripts")


@router.get("/openapi.json", response_class=JSONResponse, responses={200: _JSON})
def openapi(document: DocumentHere) -> JSONResponse:
    """Describes this API for programs."""
    return JSONResponse(document)


@router.get("/docs", response_class=HTMLResponse, responses={200: _HTML})
def docs(document: DocumentHere) -> HTMLResponse:
    """Describes this API for people, in one page that needs nothing but itself."""
    return HTMLResponse(page_of(document), headers=HEADERS)
