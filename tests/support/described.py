"""Checks that what a server answers is what its OpenAPI document says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import unquote

import httpx
from jsonschema import Draft202012Validator

from server.app import create_app
from server.config import ServerConfig
from server.engine import Engine
from server.schemas import ErrorEnvelope

ANYWHERE = {401, 403, 404, 405, 413}
"""Statuses of an address or a method that is not there."""


@cache
def document() -> dict[str, Any]:
    """The document of the code as it is."""
    engine = Engine(_never, queue_size=1, deadline=1)
    app = create_app(engine, ServerConfig(insecure_no_auth=True), None)
    described: dict[str, Any] = app.state.description()
    return described


def check_described(response: httpx.Response) -> None:
    """Fails unless the document describes an answer: status, media type, headers and body."""
    method, path = response.request.method, response.request.url.raw_path.decode()
    operation = operation_of(method, unquote(path.partition("?")[0]))
    where = f"{method} {path}: {response.status_code}"
    if operation is None:
        assert response.status_code in ANYWHERE, where
        ErrorEnvelope.model_validate_json(response.read())
        return
    described = operation["responses"].get(str(response.status_code))
    assert described is not None, f"{where} is not described"
    for name, header in described["headers"].items():
        value = response.headers.get(name)
        assert not header.get("required") or value is not None, f"{where} lacks {name}"
    kind = response.headers["content-type"].partition(";")[0]
    assert kind in described["content"], f"{where} has {kind}"
    if kind == "application/json" and response.status_code != 206:
        response.read()
        problems = list(validator(response.status_code, operation).iter_errors(response.json()))
        assert not problems, f"{where}: {problems[0].message[:500]} at {problems[0].json_path}"


def operation_of(method: str, path: str) -> dict[str, Any] | None:
    """What the document says of an address; None if it has nothing there."""
    for template, methods in document()["paths"].items():
        if re.fullmatch(pattern_of(template), path) and method.lower() in methods:
            operation: dict[str, Any] = methods[method.lower()]
            return operation
    return None


def pattern_of(template: str) -> str:
    """A pattern of the addresses that a path of the document stands for."""
    pieces = re.split(r"\{(\w+)\}", template)
    return "".join(
        re.escape(piece) if number % 2 == 0 else (".*" if piece == "model_id" else "[^/]+")
        for number, piece in enumerate(pieces)
    )


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of every operation."""
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def validator(status: int, operation: dict[str, Any]) -> Draft202012Validator:
    """Checks a JSON body of one status of an operation."""
    return _validator(str(status), operation["operationId"])


@cache
def _validator(status: str, operation_id: str) -> Draft202012Validator:
    operation = next(one for _, _, one in operations() if one["operationId"] == operation_id)
    schema = operation["responses"][status]["content"]["application/json"]["schema"]
    return Draft202012Validator({**schema, "components": document()["components"]})


def _never() -> Any:
    raise AssertionError("The model is not loaded for its description.")
