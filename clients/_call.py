"""One operation of the service: what is sent, and how its answer is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Generic, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from clients._exceptions import InvalidInput, StatusError, UnexpectedResponse, error_class
from clients._retry import Retries, retry_after
from clients._settings import Settings

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Upload:
    """A file on its way to the server, read piece by piece while it is sent.

    Attributes:
        name: What the server shall call it.
        content: The file, open for reading.
        fields: The form's other fields.
    """

    name: str
    content: BinaryIO
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Call(Generic[T]):
    """One operation of the service.

    Attributes:
        method: HTTP method.
        path: Path below the base URL.
        read: Turns the final answer into the result, or raises the error it tells of.
        body: JSON body, if there is one.
        query: Query of the URL; what is None is left out.
        headers: Headers of this call alone.
        upload: A file sent as a form in place of a JSON body.
        retry: Whether an answer that says "later" is worth another try.
        repeatable: Whether doing it twice does no more than doing it once, so that it may be
            sent again after a connection that broke.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    body: Mapping[str, Any] | None = None
    query: Mapping[str, str | int | None] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    upload: Upload | None = None
    retry: bool = True
    repeatable: bool = False


def build(call: Call[T], http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
    """The request of a call."""
    query = {name: value for name, value in call.query.items() if value is not None}
    options: dict[str, Any] = {"params": query or None, "headers": dict(call.headers)}
    if call.upload is not None:
        file = (call.upload.name, call.upload.content, "application/octet-stream")
        options |= {"data": dict(call.upload.fields), "files": {"file": file}}
    elif call.body is not None:
        options["json"] = call.body
    return http.build_request(call.method, call.path, **options)


def retries(call: Call[T], settings: Settings) -> Retries:
    """How often this call may be tried again."""
    if not call.retry:
        return replace(settings.retries, limit=0)
    return replace(settings.retries, repeatable=call.repeatable)


def reader(model: type[M]) -> Callable[[httpx.Response], M]:
    """Reads an answer of this type."""

    def read(response: httpx.Response) -> M:
        if not response.is_success:
            raise failure(response)
        try:
            return model.model_validate_json(response.content)
        except ValidationError:
            raise UnexpectedResponse(
                f"{response.url} did not answer with a {model.__name__}; is the base URL right?"
            ) from None

    return read


def failure(response: httpx.Response) -> StatusError | UnexpectedResponse:
    """The error that an answer without success tells of."""
    if response.status_code < 400:
        return UnexpectedResponse(
            f"{response.url} answered with status {response.status_code}; is the base URL right?"
        )
    try:
        body = _Envelope.model_validate_json(response.content).error
    except ValidationError:
        body = _Error(message=f"The server answered {response.status_code} without saying why.")
    return error_class(response.status_code)(
        body.message,
        status=response.status_code,
        type=body.type,
        code=body.code,
        param=body.param,
        request_id=response.headers.get("x-request-id"),
        retry_after=retry_after(response.headers),
    )


def invalid(error: ValidationError, prefix: str = "") -> InvalidInput:
    """The first finding of a failed check, naming the field."""
    first = error.errors(include_url=False)[0]
    field = ".".join([*([prefix] if prefix else []), *map(str, first["loc"])])
    return InvalidInput(f"{field}: {first['msg']}.")


class _Error(BaseModel):
    """An error as any version of the server may word it; codes are not restricted."""

    message: str
    type: str | None = None
    param: str | None = None
    code: str | None = None


class _Envelope(BaseModel):
    error: _Error
