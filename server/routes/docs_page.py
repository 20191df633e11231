"""An OpenAPI document as one HTML page, without scripts and without anything to load."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

_TEMPLATES = Path(__file__).parent / "templates"
_BOUNDS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "above",
    "exclusiveMaximum": "below",
    "minLength": "characters at least",
    "maxLength": "characters at most",
    "minItems": "items at least",
    "maxItems": "items at most",
    "maxProperties": "entries at most",
    "pattern": "pattern",
}

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A parameter or a field.

    Attributes:
        name: Its name.
        type: What it may be, as HTML.
        note: Where it stands, whether it is required, and its default.
        description: What it is for.
    """

    name: str
    type: Markup
    note: str
    description: str


def page_of(document: Mapping[str, Any]) -> str:
    """The page; every text of the document is escaped."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    operations = [
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [
        {
            "name": name,
            "description": schema.get("description", ""),
            "type": type_of(schema) if "properties" not in schema else "",
            "rows": list(_fields(schema)),
        }
        for name, schema in sorted(document["components"]["schemas"].items())
    ]
    return environment.get_template("docs.html").render(
        info=document["info"], operations=operations, schemas=schemas
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> dict[str, Any]:
    scopes = [
        scope for item in operation.get("security", ()) for scope in next(iter(item.values()))
    ]
    body = operation.get("requestBody", {}).get("content", {})
    return {
        "id": operation["operationId"],
        "method": method.upper(),
        "path": path,
        "summary": operation.get("description", operation.get("summary", "")),
        "scope": ", ".join(scopes),
        "rows": [
            Row(
                one["name"],
                type_of(one["schema"]),
                _note(one["in"], one.get("required", False), one["schema"]),
                one.get("description", one["schema"].get("description", "")),
            )
            for one in operation.get("parameters", ())
        ],
        "bodies": [(kind, type_of(media["schema"])) for kind, media in body.items()],
        "responses": [
            {
                "status": status,
                "description": response["description"],
                "kinds": [
                    (kind, type_of(_schema_of(media)), _schema_of(media).get("description", ""))
                    for kind, media in response.get("content", {}).items()
                ],
            }
            for status, response in sorted(operation["responses"].items())
        ],
    }


def _schema_of(media: Mapping[str, Any]) -> Schema:
    """What a media type holds; of a stream the data of its items."""
    if "itemSchema" not in media:
        return dict(media["schema"])
    data = media["itemSchema"]["properties"]["data"]
    return {**data["anyOf"][0]["contentSchema"], "description": data["description"]}


def _fields(schema: Schema) -> Iterator[Row]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        note = _note("", name in required, field)
        yield Row(name, type_of(field), note, field.get("description", ""))


def _note(place: str, required: bool, schema: Schema) -> str:
    parts = [place, "required" if required else ""]
    if not required and "default" in schema:
        parts.append(f"default {json.dumps(schema['default'])}")
    return ", ".join(part for part in parts if part)


def type_of(schema: Schema) -> Markup:
    """What a schema allows, in a line of HTML; named schemas are links into the page."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return Markup('<a href="#{0}">{0}</a>').format(name)
    if "const" in schema:
        return escape(json.dumps(schema["const"]))
    if "enum" in schema:
        return escape(" | ".join(json.dumps(value) for value in schema["enum"]))
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return Markup(" | ").join(type_of(one) for one in schema[key])
    if "allOf" in schema:
        return type_of(schema["allOf"][0])
    return _plain(schema)


def _plain(schema: Schema) -> Markup:
    kind = schema.get("type", "any JSON value")
    if kind == "array":
        shown = Markup("list of ({0})").format(type_of(schema.get("items", {})))
    elif kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        shown = Markup("object of ({0})").format(type_of(schema["additionalProperties"]))
    elif "properties" in schema and "title" not in schema:
        fields = ((name, type_of(field)) for name, field in schema["properties"].items())
        shown = Markup(", ").join(Markup("{0}: {1}").format(*field) for field in fields)
    else:
        shown = escape(kind)
    bounds = [f"{words} {schema[key]}" for key, words in _BOUNDS.items() if key in schema]
    return shown + escape(f" ({', '.join(bounds)})" if bounds else "")
