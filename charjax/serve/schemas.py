"""The JSON Schemas of the requests: what is validated, and what /openapi.json says."""

from __future__ import annotations

from typing import Any

from charjax.serve.limits import RequestLimits

MAX_LOGPROBS = 20
_MAX_STRING = 100  # characters of a stop string, or of `forbid` or `only`


def completion_schema(limits: RequestLimits) -> dict[str, Any]:
    """The body of POST /v1/completions. A field that is null has its default."""
    ids = _ids(limits)
    text = {"title": "a string", "type": "string", "maxLength": limits.max_prompt}
    prompts = [
        text,
        {"title": "a list of strings"} | _list(text, limits.max_texts),
        {"title": "a list of ids"} | ids,
        {"title": "a list of lists of ids"} | _list(ids, limits.max_texts),
    ]
    stop = {"title": "a string", "type": "string", "minLength": 1, "maxLength": _MAX_STRING}
    stops = {"title": "a list of strings"} | _list(stop, 16, least=0)
    null = {"title": "null", "type": "null"}
    fields = {
        "model": {"type": ["string", "null"], "description": "Default: the first model."},
        "prompt": {"anyOf": [*prompts, null], "description": "Default: an empty string."},
        "n": _integer(1, 1, limits.max_texts),
        "max_tokens": _integer(min(16, limits.max_tokens), 0, limits.max_tokens),
        "stop": {"anyOf": [stop, stops, null]},
        "until_lines": _integer(0, 0, limits.max_tokens, "The text ends after this many lines."),
        "seed": {"type": ["integer", "null"], "minimum": 0, "maximum": 2**32 - 1},
        "unknown": {
            "type": ["string", "null"],
            "enum": ["error", "unk", None],
            "description": "Characters outside the vocabulary: refuse them, or read them as [UNK].",
        },
    }
    return _object(fields | _sampling_fields() | _answer_fields() | _neutral_fields(limits))


def _sampling_fields() -> dict[str, Any]:
    """How tokens are chosen."""
    characters = {"type": ["string", "null"], "maxLength": _MAX_STRING}
    return {
        "temperature": _number(1, minimum=0, maximum=100),
        "top_p": _number(1, exclusiveMinimum=0, maximum=1),
        "top_k": _integer(0, -1, 2**31 - 1, "-1 and 0: all tokens."),
        "min_p": _number(0, minimum=0, maximum=1),
        "repetition_penalty": _number(1, minimum=0.1, maximum=10),
        "repetition_window": _integer(64, 1, 10**6, "Characters that the penalty looks back."),
        "logit_bias": {
            "type": ["object", "null"],
            "propertyNames": {"pattern": "^[0-9]{1,7}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": 1024,
        },
        "forbid": characters | {"description": "Characters that are never sampled."},
        "only": characters | {"description": "The only characters that are sampled."},
        "max_copy": _integer(0, 0, 1000, "Longest passage copied from the training text; 0: any."),
    }


def _answer_fields() -> dict[str, Any]:
    """What the answer holds."""
    usage = {"include_usage": _boolean(), "include_obfuscation": _boolean()}
    return {
        "echo": _boolean(),
        "logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_LOGPROBS},
        "stream": _boolean(),
        "stream_options": _object(usage) | {"type": ["object", "null"]},
        "user": {"type": ["string", "null"], "description": "Ignored."},
    }


def _neutral_fields(limits: RequestLimits) -> dict[str, Any]:
    """Fields of the protocol that must have the value that changes nothing."""
    return {
        "best_of": _integer(1, 1, limits.max_texts, "Must be n."),
        "suffix": {"type": ["string", "null"], "enum": ["", None]},
        "presence_penalty": {"type": ["number", "null"], "enum": [0, None]},
        "frequency_penalty": {"type": ["number", "null"], "enum": [0, None]},
    }


def tokenize_schema(limits: RequestLimits) -> dict[str, Any]:
    """The body of POST /tokenize."""
    prompt = {"type": "string", "maxLength": limits.max_prompt}
    fields = {
        "model": {"type": ["string", "null"]},
        "prompt": prompt,
        "add_special_tokens": _boolean(default=True),
        "return_token_strs": _boolean(),
        "unknown": {"type": ["string", "null"], "enum": ["error", "unk", None]},
    }
    return _object(fields, "prompt")


def detokenize_schema(limits: RequestLimits) -> dict[str, Any]:
    """The body of POST /detokenize."""
    return _object({"model": {"type": ["string", "null"]}, "tokens": _ids(limits)}, "tokens")


def copied_schema(limits: RequestLimits) -> dict[str, Any]:
    """The body of POST /v1/copied."""
    fields = {
        "model": {"type": ["string", "null"]},
        "text": {"type": "string", "maxLength": limits.max_prompt},
        "min_chars": _integer(40, 8, 1000),
    }
    return _object(fields, "text")


def _object(fields: dict[str, Any], *required: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": fields, "additionalProperties": False}
    return schema | ({"required": [*required]} if required else {})


def _ids(limits: RequestLimits) -> dict[str, Any]:
    token = {"type": "integer", "minimum": 0, "maximum": 2**21}
    return {"type": "array", "items": token, "maxItems": limits.max_prompt}


def _list(items: dict[str, Any], most: int, least: int = 1) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _boolean(*, default: bool = False) -> dict[str, Any]:
    return {"type": ["boolean", "null"], "default": default}


def _integer(default: int, low: int, high: int, about: str = "") -> dict[str, Any]:
    schema = {"type": ["integer", "null"], "default": default, "minimum": low, "maximum": high}
    return schema | ({"description": about} if about else {})


def _number(default: float, **bounds: float) -> dict[str, Any]:
    return {"type": ["number", "null"], "default": default} | bounds
