"""The server's own description, for /openapi.json."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from .request.reader import Reader

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "integer"},
            },
        }
    },
}
REFUSALS = {
    "400": "The request cannot be answered as it is.",
    "401": "The API key is missing or wrong.",
    "404": "There is no such model, or no such path.",
    "408": "The request was not sent in time.",
    "413": "The request is too large.",
    "429": "Too many answers are under way.",
    "500": "The server has a fault.",
    "503": "Memory is short, or the server is closing.",
}
STREAMED = ("/v1/chat/completions", "/v1/completions")
REF = "#/components/schemas/{model}"


def describe(app: FastAPI, readers: Iterable[tuple[str, Reader[Any]]]) -> None:
    """Have an application describe what its routes read.   readers: by the paths that they are for."""
    schemas = {path: reader.adapter.json_schema(ref_template=REF) for path, reader in readers}

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _made(app, schemas)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation says


def _made(app: FastAPI, schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components = made.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, for errors of another form
        components.pop(unused, None)
    components["Error"] = ERROR
    refusals = {
        status: {"description": text, "content": {"application/json": {"schema": {"$ref": REF.format(model="Error")}}}}
        for status, text in REFUSALS.items()
    }
    for path, methods in made["paths"].items():
        for method in methods.values():
            method["responses"] = {"200": {"description": "What was asked for."}, **refusals}
            method["responses"]["200"]["content"] = {"application/json": {}}
        if path in STREAMED:
            methods["post"]["responses"]["200"]["content"]["text/event-stream"] = {}
        if path in schemas:
            schema = dict(schemas[path])
            components |= schema.pop("$defs", {})
            methods["post"]["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return made
