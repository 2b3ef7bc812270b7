"""The JSON Schemas of the requests: what is validated, and what /openapi.json says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from charjax.inference.options import Controls, Sampling
from charjax.serve.limits import RequestLimits

Schema: TypeAlias = dict[str, Any]

MAX_LOGPROBS = 20
_MAX_STRING = 100  # characters of a stop string, or of `forbid` or `only`


def completion_schema(limits: RequestLimits) -> Schema:
    """The body of POST /v1/completions. A field that is null has its default."""
    ids = _ids(limits)
    text = {"minLength": 1, "maxLength": _MAX_STRING}
    usage = {"include_usage": _boolean(), "include_obfuscation": _boolean()}
    fields = {
        "model": _MODEL_NAME,
        "prompt": {
            "type": ["string", "array", "null"],
            "default": "",
            "maxLength": limits.max_prompt,
            "maxItems": limits.max_prompt,
            "items": ids["items"]
            | {
                "type": ["string", "integer", "array"],
                "maxLength": limits.max_prompt,
                "maxItems": limits.max_prompt,
                "items": ids["items"],
            },
            "description": "A string, a list of strings, a list of ids, or a list of lists of ids.",
        },
        "n": _integer(1, 1, limits.max_texts),
        "max_tokens": _integer(min(16, limits.max_tokens), 0, limits.max_tokens),
        "stop": text
        | {
            "type": ["string", "array", "null"],
            "default": [],
            "maxItems": 16,
            "items": text | TEXT,
        },
        "until_lines": _option(Controls, "until_lines", "The text ends after this many lines."),
        "seed": _option(Sampling, "seed", default=None),
        "unknown": _UNKNOWN,
        "echo": _boolean(),
        "logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_LOGPROBS},
        "stream": _boolean(),
        "stream_options": object_of(usage) | {"type": ["object", "null"], "default": {}},
        "user": {"type": ["string", "null"], "description": "Ignored."},
    }
    return object_of(fields | _sampling_fields() | _neutral_fields(limits))


def _sampling_fields() -> Schema:
    """How tokens are chosen."""
    characters = {"type": ["string", "null"], "default": "", "maxLength": _MAX_STRING}
    return {
        "temperature": _option(Sampling, "temperature", maximum=100),
        "top_p": _option(Sampling, "top_p"),
        "top_k": _option(Sampling, "top_k", "-1 and 0: all tokens.", minimum=-1),
        "min_p": _option(Sampling, "min_p"),
        "repetition_penalty": _option(Sampling, "repetition_penalty"),
        "repetition_window": _option(
            Sampling, "repetition_window", "Characters that the penalty looks back."
        ),
        "logit_bias": {
            "type": ["object", "null"],
            "default": {},
            "propertyNames": {"pattern": "^(0|[1-9][0-9]{0,6})$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": 1024,
        },
        "forbid": characters | {"description": "Characters that are never sampled."},
        "only": characters | {"description": "The only characters that are sampled."},
        "max_copy": _option(
            Controls, "max_copy", "Longest passage copied from the training text; 0: any."
        ),
    }


def _neutral_fields(limits: RequestLimits) -> Schema:
    """Fields of the protocol that must have the value that changes nothing."""
    return {
        "best_of": _integer(1, 1, limits.max_texts, "Must be n."),
        "suffix": {"type": ["string", "null"], "enum": ["", None]},
        "presence_penalty": {"type": ["number", "null"], "enum": [0, None]},
        "frequency_penalty": {"type": ["number", "null"], "enum": [0, None]},
    }


def tokenize_schema(limits: RequestLimits) -> Schema:
    """The body of POST /tokenize."""
    fields = {
        "model": _MODEL_NAME,
        "prompt": TEXT | {"maxLength": limits.max_prompt},
        "add_special_tokens": _boolean(default=True),
        "return_token_strs": _boolean(),
        "unknown": _UNKNOWN,
    }
    return object_of(fields, ["prompt"])


def detokenize_schema(limits: RequestLimits) -> Schema:
    """The body of POST /detokenize."""
    return object_of({"model": _MODEL_NAME, "tokens": _ids(limits)}, ["tokens"])


def copied_schema(limits: RequestLimits) -> Schema:
    """The body of POST /v1/copied."""
    fields = {
        "model": _MODEL_NAME,
        "text": TEXT | {"maxLength": limits.max_prompt},
        "min_chars": _integer(40, 8, 1000),
    }
    return object_of(fields, ["text"])


def object_of(fields: Mapping[str, Any], required: Sequence[str] = ()) -> Schema:
    """The schema of an object that has no other fields."""
    schema = {"type": "object", "properties": fields, "additionalProperties": False}
    return schema | ({"required": [*required]} if required else {})


def _ids(limits: RequestLimits) -> Schema:
    token = {"type": "integer", "minimum": 0, "maximum": 2**21}
    return {"type": "array", "items": token, "maxItems": limits.max_prompt}


def _boolean(*, default: bool = False) -> Schema:
    return {"type": ["boolean", "null"], "default": default}


def _integer(default: int, low: int, high: int, about: str = "") -> Schema:
    schema = {"type": ["integer", "null"], "default": default, "minimum": low, "maximum": high}
    return schema | ({"description": about} if about else {})


def _option(options: Any, name: str, about: str = "", **changes: Any) -> Schema:
    """A numeric field of a dataclass of options: its default and limits, but for `changes`."""
    field = options.__dataclass_fields__[name]
    schema = _integer(field.default, field.metadata["low"], field.metadata["high"], about)
    if isinstance(field.default, float):
        schema["type"] = ["number", "null"]
    if field.metadata["excludes_low"]:
        schema["exclusiveMinimum"] = schema.pop("minimum")
    return schema | changes


TEXT = {"type": "string"}
_MODEL_NAME = {"type": ["string", "null"], "description": "Default: the first model."}
_UNKNOWN = {
    "type": ["string", "null"],
    "default": "error",
    "enum": ["error", "unk", None],
    "description": "Characters outside the vocabulary: refuse them, or read them as [UNK].",
}
