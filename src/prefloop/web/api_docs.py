"""The API's OpenAPI schema, read for people: what `/api/docs` shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]


@dataclass(frozen=True)
class Field:
    name: str
    kind: str
    bounds: str
    text: str
    required: bool


@dataclass(frozen=True)
class Body:
    """What is sent or answered: one or more named objects, or something else."""

    kind: str
    objects: list[tuple[str, list[Field]]]


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    tag: str
    summary: str
    parameters: list[Field]
    body: Body | None
    answers: list[tuple[str, str, Body | None]]
    """Status, meaning, what comes."""


def operations(openapi: Schema) -> dict[str, list[Operation]]:
    """Tag → its operations, in the order of the schema's tags."""
    found: dict[str, list[Operation]] = {tag["name"]: [] for tag in openapi["tags"]}
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            made = _operation(openapi, method.upper(), path, operation)
            found[made.tag].append(made)
    return found


def _operation(openapi: Schema, method: str, path: str, operation: Schema) -> Operation:
    body = operation.get("requestBody")
    return Operation(
        method=method,
        path=path,
        tag=operation["tags"][0],
        summary=operation["description"],
        parameters=[_parameter(parameter) for parameter in operation.get("parameters", [])],
        body=None if body is None else _body(openapi, body["content"]),
        answers=[
            (status, answer["description"], None if int(status) >= 400 else _body(openapi, answer.get("content", {})))
            for status, answer in sorted(operation["responses"].items())
        ],
    )


def _parameter(parameter: Schema) -> Field:
    schema, text = parameter["schema"], parameter.get("description", "")
    return Field(parameter["name"], _kind(schema), _bounds(schema), text, parameter.get("required", False))


def _body(openapi: Schema, content: Schema) -> Body | None:
    if not content:
        return None
    schema = next(iter(content.values()))["schema"]
    kind = _kind(schema) if "application/json" in content else " or ".join(content)
    return Body(kind, list(_objects(openapi, schema, set())))


def _objects(openapi: Schema, schema: Any, seen: set[str]) -> Iterator[tuple[str, list[Field]]]:
    """Every object that a schema is made of, each once."""
    if isinstance(schema, list):
        for part in schema:
            yield from _objects(openapi, part, seen)
    elif isinstance(schema, dict):
        reference = schema.get("$ref")
        if reference and (name := _last(reference)) not in seen:
            seen.add(name)
            target = openapi["components"]["schemas"][name]
            yield name, _fields(target)
            yield from _objects(openapi, target.get("properties", {}), seen)
        else:
            yield from _objects(openapi, [part for key, part in schema.items() if key != "$ref"], seen)


def _fields(schema: Schema) -> list[Field]:
    required = schema.get("required", [])
    return [
        Field(name, _kind(field), _bounds(field), field.get("description", ""), name in required)
        for name, field in schema.get("properties", {}).items()
    ]


def _kind(schema: Schema) -> str:
    if "$ref" in schema:
        return _last(schema["$ref"])
    if "anyOf" in schema:
        return " or ".join(_kind(part) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " | ".join(f'"{value}"' for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    return str(schema.get("format", schema.get("type", "anything")))


def _bounds(schema: Schema) -> str:
    """The limits that a schema sets, of the parts that may be null too."""
    words = {
        "minimum": "at least {}",
        "maximum": "at most {}",
        "exclusiveMaximum": "below {}",
        "minLength": "{} characters or more",
        "maxLength": "{} characters or fewer",
        "minItems": "{} entries or more",
        "maxItems": "{} entries or fewer",
    }
    parts = [schema, *schema.get("anyOf", [])]
    told = [text.format(part[key]) for part in parts for key, text in words.items() if key in part]
    if schema.get("default") not in (None, ""):
        told.append(f"{schema['default']} when left out")
    return ", ".join(told)


def _last(reference: str) -> str:
    return reference.rpartition("/")[2]
