"""The JSON Schemas of the answers, for /openapi.json."""

from __future__ import annotations

from charjax.serve.schemas import TEXT, Schema, object_of


def _record(**fields: Schema) -> Schema:
    """The schema of an object with all of these fields."""
    return object_of(fields, [*fields])


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


_NULL = {"type": "null"}
_COUNT = {"type": "integer", "minimum": 0}
_NUMBER = {"type": "number"}
ERROR = _record(error=_record(message=TEXT, type=TEXT, param=_or_null(TEXT), code=_or_null(TEXT)))
HEALTH = _record(status=TEXT)
MODEL = _record(
    id=TEXT,
    object=TEXT,
    created=_COUNT,
    owned_by=TEXT,
    charjax=_record(
        cell=TEXT,
        layers=_COUNT,
        hidden=_COUNT,
        vocab_size=_COUNT,
        step=_COUNT,
        val_loss=_or_null(_NUMBER),
        corpus=TEXT,
        start=TEXT,
        characters=TEXT,
        unit=TEXT,
        documents={"type": "boolean"},
    ),
)
MODELS = _record(object=TEXT, data=_list(MODEL))
TOKENIZER = _record(
    tokenizer_class=TEXT,
    vocab_size=_COUNT,
    model_max_length=_COUNT,
    bos_token=TEXT,
    eos_token=TEXT,
    pad_token=_NULL,
    unk_token=_or_null(TEXT),
    chat_template=_NULL,
)
TOKENS = _record(
    count=_COUNT,
    max_model_len=_COUNT,
    tokens=_list(_COUNT),
    token_strs=_or_null(_list(TEXT)),
)
PROMPT = _record(prompt=TEXT)
PASSAGES = _record(passages=_list(_record(start=_COUNT, end=_COUNT)))
_LOGPROBS = _record(
    tokens=_list(TEXT),
    token_logprobs=_list(_or_null(_NUMBER)),
    top_logprobs=_list({"type": ["object", "null"], "additionalProperties": _NUMBER}),
    text_offset=_list(_COUNT),
)
COMPLETION = _record(
    id=TEXT,
    object=TEXT,
    created=_COUNT,
    model=TEXT,
    seed=_COUNT,
    choices=_list(
        _record(
            index=_COUNT,
            text=TEXT,
            logprobs=_or_null(_LOGPROBS),
            finish_reason={"enum": ["stop", "length"]},
        )
    ),
    usage=_record(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT),
)
