"""The OpenAPI document of the server: its requests are the schemas that are validated."""

from __future__ import annotations

from typing import Any

from charjax.serve.json_schema import Schema
from charjax.serve.limits import RequestLimits
from charjax.serve.schemas import (
    completion_schema,
    copied_schema,
    detokenize_schema,
    tokenize_schema,
)

_ERRORS = {
    "400": "A field is not valid.",
    "401": "The key is missing or wrong.",
    "403": "The Host header names another host.",
    "404": "There is no such model.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The content type is not application/json.",
    "429": "Too many texts are waiting.",
    "500": "The text could not be written.",
    "503": "The server is shutting down.",
    "504": "The time limit is over.",
}


def openapi(limits: RequestLimits, *, has_key: bool) -> dict[str, Any]:
    """The document, of OpenAPI 3.1.

    Args:
      limits: of requests.
      has_key: whether clients must send a key.
    """
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    query = {"name": "model", "in": "query", "required": False, "schema": {"type": "string"}}
    paths = {
        "/health": _get("Whether the server is up.", _record(status=_TEXT)),
        "/v1/models": _get("The models.", _record(object=_TEXT, data=_list(_MODEL))),
        "/v1/models/{name}": _get("One model.", _MODEL, name),
        "/v1/completions": _completions(limits),
        "/v1/copied": _post(
            "Passages of a text that the training text has, too.",
            copied_schema(limits),
            _record(passages=_list(_record(start=_COUNT, end=_COUNT))),
        ),
        "/tokenize": _post(
            "The ids of a text.",
            tokenize_schema(limits),
            _record(
                count=_COUNT,
                max_model_len=_COUNT,
                tokens=_list(_COUNT),
                token_strs=_or_null(_list(_TEXT)),
            ),
        ),
        "/detokenize": _post("The text of ids.", detokenize_schema(limits), _record(prompt=_TEXT)),
        "/tokenizer_info": _get("The special tokens.", _TOKENIZER, query),
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "charjax serve", "version": "1"},
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR}},
    }
    if has_key:
        bearer = {"type": "http", "scheme": "bearer"}
        document["components"]["securitySchemes"] = {"key": bearer}
        document["security"] = [{"key": []}]
    return document


def _completions(limits: RequestLimits) -> dict[str, Any]:
    """The path of completions, whose answer is JSON or a stream of events."""
    path = _post("Texts that continue prompts.", completion_schema(limits), _COMPLETION)
    content = path["post"]["responses"]["200"]["content"]
    content["text/event-stream"] = {}
    return path


def _get(summary: str, answer: Schema, *parameters: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "responses": _responses(answer)}
    if parameters:
        operation["parameters"] = [*parameters]
    return {"get": operation}


def _post(summary: str, body: Schema, answer: Schema) -> dict[str, Any]:
    request = {"required": True, "content": {"application/json": {"schema": body}}}
    return {"post": {"summary": summary, "requestBody": request, "responses": _responses(answer)}}


def _responses(answer: Schema) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    errors = {code: {"description": about, "content": error} for code, about in _ERRORS.items()}
    ok = {"description": "OK", "content": {"application/json": {"schema": answer}}}
    return {"200": ok} | errors


def _record(**fields: Schema) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": fields,
        "required": [*fields],
        "additionalProperties": False,
    }


def _list(items: Schema) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_NUMBER = {"type": "number"}
_ERROR = _record(
    error=_record(message=_TEXT, type=_TEXT, param=_or_null(_TEXT), code=_or_null(_TEXT))
)
_MODEL = _record(
    id=_TEXT,
    object=_TEXT,
    created=_COUNT,
    owned_by=_TEXT,
    charjax=_record(
        cell=_TEXT,
        layers=_COUNT,
        hidden=_COUNT,
        vocab_size=_COUNT,
        step=_COUNT,
        val_loss=_or_null(_NUMBER),
        corpus=_TEXT,
        start=_TEXT,
        characters=_TEXT,
        unit=_TEXT,
        documents={"type": "boolean"},
    ),
)
_TOKENIZER = _record(
    tokenizer_class=_TEXT,
    vocab_size=_COUNT,
    model_max_length=_COUNT,
    bos_token=_TEXT,
    eos_token=_TEXT,
    pad_token={"type": "null"},
    unk_token=_or_null(_TEXT),
    chat_template={"type": "null"},
)
_LOGPROBS = _record(
    tokens=_list(_TEXT),
    token_logprobs=_list(_or_null(_NUMBER)),
    top_logprobs=_list(_or_null({"type": "object", "additionalProperties": _NUMBER})),
    text_offset=_list(_COUNT),
)
_COMPLETION = _record(
    id=_TEXT,
    object=_TEXT,
    created=_COUNT,
    model=_TEXT,
    seed=_COUNT,
    choices=_list(
        _record(
            index=_COUNT,
            text=_TEXT,
            logprobs=_or_null(_LOGPROBS),
            finish_reason={"enum": ["stop", "length"]},
        )
    ),
    usage=_record(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT),
)
