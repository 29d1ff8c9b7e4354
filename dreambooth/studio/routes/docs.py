"""The page that lists the API with examples, made of its OpenAPI document; it loads nothing from elsewhere."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse
from markupsafe import Markup

router = APIRouter(include_in_schema=False)
FOLDER = Path(__file__).parent
METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True)
class Operation:
    """Hold one method of one path. fields: name, type and text of each. examples: bodies as JSON."""

    method: str
    path: str
    summary: str
    text: str
    fields: list[tuple[str, str, str]]
    examples: list[str]

    @property
    def anchor(self) -> str:
        return f"{self.method}{self.path}".replace("/", "-").replace("{", "").replace("}", "")


@router.get("/docs")
def docs(request: Request) -> HTMLResponse:
    """Return the page."""
    document = request.app.openapi()
    groups = [(tag, list(_operations(document, tag["name"]))) for tag in document["tags"]]
    text = _template().render(title=document["info"]["title"], about=document["info"]["description"], groups=groups)
    return HTMLResponse(text)


@router.get("/docs.css")
def style() -> FileResponse:
    """Return the page's style."""
    return FileResponse(FOLDER / "docs.css", media_type="text/css")


@cache
def _template() -> jinja2.Template:
    source = (FOLDER / "docs.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["marked"] = marked
    return environment.from_string(source)


def marked(text: str) -> Markup:
    """Return a text as HTML, with what stands between backticks as code."""
    parts = (
        Markup("<code>{}</code>" if number % 2 else "{}").format(part) for number, part in enumerate(text.split("`"))
    )
    return Markup("").join(parts)


def _operations(document: dict[str, Any], tag: str) -> Iterator[Operation]:
    """Yield the operations of a tag."""
    for path, methods in document["paths"].items():
        for method in METHODS:
            found = methods.get(method)
            if found is None or tag not in found.get("tags", ()):
                continue
            bodies = list(_bodies(document, found))
            fields = [_parameter(each) for each in found.get("parameters", ())]
            fields += [field for body in bodies for field in _fields(body)] if len(bodies) == 1 else []
            examples = [json.dumps(example, indent=2) for body in bodies for example in body.get("examples", ())]
            yield Operation(method, path, found.get("summary", ""), found.get("description", ""), fields, examples)


def _bodies(document: dict[str, Any], operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the schemas that an operation takes as JSON; a choice of several is each of them."""
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    for each in schema.get("oneOf", [schema]):
        name = each.get("$ref", "").rpartition("/")[2]
        if name:
            yield document["components"]["schemas"][name]


def _parameter(found: dict[str, Any]) -> tuple[str, str, str]:
    schema = found.get("schema", {})
    usual = "" if schema.get("default") in (None, "", []) else f"default {schema['default']}"
    return found["name"], _type(schema), "; ".join(filter(None, [schema.get("description", ""), usual]))


def _fields(schema: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, field in schema.get("properties", {}).items():
        yield name, _type(field), str(field.get("description", ""))


def _type(schema: dict[str, Any]) -> str:
    """Return the type of a value in a word or two."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_type, schema["anyOf"])))
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("const", schema.get("type", "object")))
