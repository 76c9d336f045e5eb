"""The description of the server that it gives at `/openapi.json`."""

from typing import Any

from hf_vse import __version__
from hf_vse.serve.limits import Limits
from hf_vse.serve.requests import DEFAULT_IMAGE_WEIGHT, DEFAULT_K

ERRORS = {
    400: "a field is missing or wrong",
    401: "the token is missing or wrong",
    413: "a text, the photograph or the request is too large",
    429: "too many requests at a time",
    500: "the search failed; the log of the server says why",
    503: "the gallery does not answer",
    504: "not answered in time",
}
OF_A_FORM = {408: "the form did not arrive in time", 415: "the body is no form"}


def openapi_of(limits: Limits, with_token: bool) -> dict[str, Any]:
    """A document of OpenAPI 3.1, with the limits of this server."""
    fields = field_schemas(limits)
    parameters = [
        {"name": name, "in": "query", "required": name == "q", "schema": schema} for name, schema in fields.items()
    ]
    del parameters[-1]  # of a photograph, which a GET has none of
    form = fields | {
        "image": {
            "type": "string",
            "format": "binary",
            "description": f"a photograph, at most {limits.image_bytes:,} bytes and {limits.image_pixels:,} pixels",
        }
    }
    content = {"multipart/form-data": {"schema": {"type": "object", "properties": form}}}
    paths: dict[str, Any] = {
        "/search": {
            "get": {"summary": "find images by text", "parameters": parameters, "responses": answers({})},
            "post": {
                "summary": "find images by texts, by a photograph, or by both",
                "requestBody": {"required": True, "content": content},
                "responses": answers(OF_A_FORM),
            },
        },
        "/health": {"get": {"summary": "whether the gallery answers", "responses": undescribed("application/json")}},
        "/metrics": {"get": {"summary": "counters for Prometheus", "responses": undescribed("text/plain")}},
        "/openapi.json": {"get": {"summary": "this document", "responses": undescribed("application/json")}},
    }
    document: dict[str, Any] = {"openapi": "3.1.0", "info": {"title": "hf_vse search", "version": __version__}}
    document |= {"paths": paths, "components": {"schemas": SCHEMAS}}
    if with_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        paths["/health"]["get"]["security"] = []
    return document


def field_schemas(limits: Limits) -> dict[str, Any]:
    """The schema of each field; `image_weight` last, as it belongs to a form alone."""
    text = {"type": "string", "minLength": 1, "maxLength": limits.text}
    k = {"type": "integer", "minimum": 1, "maximum": limits.k, "default": min(DEFAULT_K, limits.k)}
    weight = {"type": "number", "minimum": 0, "maximum": 1, "default": DEFAULT_IMAGE_WEIGHT}
    return {
        "q": {"type": "array", "items": text, "maxItems": limits.queries, "description": "a sentence for each query"},
        "k": k | {"description": "results for each query"},
        "where": {
            "type": "array",
            "items": text,
            "maxItems": limits.conditions,
            "description": "conditions, FIELD OP VALUE, OP = != < <= > >= ~",
        },
        "image_weight": weight | {"description": "share of the photograph where there is a sentence too"},
    }


def answers(more: dict[int, str]) -> dict[str, Any]:
    errors = {
        str(status): {"description": what, "content": json_of("Error")}
        for status, what in sorted((ERRORS | more).items())
    }
    return {"200": {"description": "what was found, best first", "content": json_of("Found")}} | errors


def json_of(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def undescribed(media_type: str) -> dict[str, Any]:
    return {"200": {"description": "as it says", "content": {media_type: {}}}}


RESULT = {
    "type": "object",
    "required": ["score", "item"],
    "properties": {"score": {"type": "number"}, "item": {"description": "what the gallery says of the image"}},
}
OF_A_QUERY = {
    "type": "object",
    "required": ["text", "results"],
    "properties": {"text": {"type": ["string", "null"]}, "results": {"type": "array", "items": RESULT}},
}
SCHEMAS: dict[str, Any] = {
    "Found": {
        "type": "object",
        "required": ["queries"],
        "properties": {"queries": {"type": "array", "items": OF_A_QUERY}},
    },
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
}
