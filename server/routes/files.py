"""`/v1/files`: uploads and what jobs have made; `/v1/datasets`: what the server has already."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Any
from urllib.parse import quote

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from server.errors import (
    ArchiveRefused,
    ArchiveTooLarge,
    ClientDisconnected,
    DataFileInUse,
    DataFileNotFound,
    InvalidBody,
    InvalidRequest,
    NotFound,
    RangeNotSatisfiable,
    StorageFull,
    UnsupportedFile,
    UnsupportedMediaType,
    UnusableDataSet,
)
from server.multipart import UploadForm
from server.routes.access import Require, ServicesHere, needed, owner_of
from server.routes.description import content, refusals
from server.routes.in_threads import in_threads
from server.routes.paging import After, cut
from server.routes.stored_file import StoredFile
from server.schemas.files import DataSetCard, DataSetList, FileDeleted, FileList, FileObject
from server.security.keys import Principal
from server.store.file_tables import UPLOAD
from server.store.files import FileRecord, FileStore, Incoming, Order
from server.store.tar import tar_chunks, tar_size

uploads = APIRouter(prefix="/v1/files")
"""The one route whose body may be larger than any other's."""
router = APIRouter(prefix="/v1/files")
datasets = APIRouter(prefix="/v1/datasets", dependencies=[Depends(Require("jobs:read"))])

HEADERS = {
    "content-security-policy": "default-src 'none'; sandbox",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
"""Whoever sent a file decided what is in it: a browser must not show it."""

_BYTES = "application/octet-stream"
_CHUNK = 1 << 20
_CARD_FIELDS = ("id", "bytes", "filename", "purpose", "sha256")

Reader = Annotated[Principal, Depends(Require("jobs:read"))]
Writer = Annotated[Principal, Depends(Require("jobs:write"))]


_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "purpose": {"type": "string", "const": UPLOAD},
                        "file": {"type": "string", "format": "binary", "minLength": 1},
                    },
                    "required": ["purpose", "file"],
                    "additionalProperties": False,
                }
            }
        },
    }
}


@uploads.post(
    "",
    openapi_extra=_FORM,
    responses=refusals(
        InvalidBody,
        InvalidRequest,
        NotFound,
        UnsupportedMediaType,
        UnsupportedFile,
        ArchiveRefused,
        ArchiveTooLarge,
        UnusableDataSet,
        StorageFull,
    ),
)
async def create(request: Request, principal: Writer, services: ServicesHere) -> FileObject:
    """Takes a label file, or an archive of one and its images; the body goes to disk."""
    store = needed(services.files)
    async with in_threads(store.receive()) as incoming:
        record = await _receive(request, store, incoming, principal)
    return _card(record)


@router.get("", responses=refusals(NotFound, DataFileNotFound))
def list_files(
    principal: Reader,
    services: ServicesHere,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    order: Order = "desc",
    purpose: Annotated[str | None, Query(max_length=64)] = None,
) -> FileList:
    """Lists files, newest first unless `order` is `asc`."""
    found = needed(services.files).list(
        after=after, limit=limit + 1, order=order, purpose=purpose, owner=owner_of(principal)
    )
    page, more = cut([_card(record) for record in found], limit)
    ends = (page[0].id, page[-1].id) if page else (None, None)
    return FileList(data=page, first_id=ends[0], last_id=ends[1], has_more=more)


@router.get("/{file_id}", responses=refusals(DataFileNotFound))
def get_file(file_id: str, principal: Reader, services: ServicesHere) -> FileObject:
    """Describes one file."""
    return _card(needed(services.files).get(file_id, owner=owner_of(principal)))


_BINARY: dict[str, dict[str, str]] = {
    _BYTES: {"type": "string", "format": "binary"},
    "application/x-tar": {"type": "string", "format": "binary"},
}


@router.get(
    "/{file_id}/content",
    response_class=Response,
    responses={
        200: content(_BINARY, "The file, or a tar of what came as an archive"),
        206: content(
            {_BYTES: _BINARY[_BYTES]}, "The range of it that the header `range` asked for"
        ),
        **refusals(DataFileNotFound, RangeNotSatisfiable),
    },
)
def get_content(file_id: str, principal: Reader, services: ServicesHere) -> Response:
    """Sends a file; what came as an archive comes back as a tar of its members."""
    store = needed(services.files)
    record = store.get(file_id, owner=owner_of(principal))
    path = store.content(record)
    name = PurePosixPath(record.filename).name
    if path.is_file():
        return StoredFile(path, media_type=_BYTES, filename=name, headers=HEADERS)
    disposition = f"attachment; filename*=utf-8''{quote(name)}.tar"
    headers = {"content-length": str(tar_size(path)), "content-disposition": disposition}
    return StreamingResponse(
        tar_chunks(path), media_type="application/x-tar", headers=HEADERS | headers
    )


@router.delete("/{file_id}", responses=refusals(DataFileNotFound, DataFileInUse))
def delete_file(file_id: str, principal: Writer, services: ServicesHere) -> FileDeleted:
    """Removes a file that no unfinished job needs."""
    needed(services.files).delete(file_id, owner=owner_of(principal))
    return FileDeleted(id=file_id)


@datasets.get("", responses=refusals(NotFound))
def list_datasets(services: ServicesHere) -> DataSetList:
    """Lists the operator's data sets and the demo's."""
    names = needed(services.datasets).ids()
    return DataSetList(data=[DataSetCard(id=name) for name in names])


async def _receive(
    request: Request, store: FileStore, incoming: Incoming, principal: Principal
) -> FileRecord:
    form = UploadForm(request.headers.get("content-type", ""), incoming.write, _check_field)
    async for chunk in _chunks(request):
        await run_sync(form.feed, chunk)
    sent = form.close()
    if "purpose" not in sent.fields:
        raise InvalidRequest("purpose is missing.", param="purpose")
    keep = partial(
        store.add,
        incoming,
        filename=sent.filename,
        purpose=sent.fields["purpose"],
        key_id=principal.key_id,
    )
    return await run_sync(keep)


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces worth a change of threads."""
    gathered = bytearray()
    try:
        async for chunk in request.stream():
            gathered += chunk
            if len(gathered) >= _CHUNK:
                yield bytes(gathered)
                gathered.clear()
    except ClientDisconnect:
        raise ClientDisconnected from None
    yield bytes(gathered)


def _check_field(name: str, value: str) -> None:
    if name != "purpose":
        shown = "".join(character for character in name[:64] if character.isprintable())
        raise InvalidRequest(f"{shown} is not known; remove it or check its name.", param=shown)
    if value != UPLOAD:
        raise InvalidRequest(f"purpose must be {UPLOAD}.", param="purpose")


def _card(record: FileRecord) -> FileObject:
    fields: dict[str, Any] = {name: getattr(record, name) for name in _CARD_FIELDS}
    return FileObject(created_at=int(record.created_at), **fields)
