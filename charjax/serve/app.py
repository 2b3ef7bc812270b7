"""The ASGI application: the routes of the server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from charjax.serve import answers
from charjax.serve.access import AccessChecks
from charjax.serve.body import Fields, body_parser, read_body
from charjax.serve.completions import parse_completion
from charjax.serve.copies import copied_passages, table_against_copying
from charjax.serve.delivery import EventStream, whole_answer
from charjax.serve.errors import ProtocolError, as_field_errors, shutting_down
from charjax.serve.jobs import PieceQueue
from charjax.serve.limits import RequestLimits
from charjax.serve.logprobs import token_string
from charjax.serve.models import ServedModel
from charjax.serve.openapi import MODEL, NAME, Operation, openapi
from charjax.serve.page import PAGE, PAGE_HEADERS
from charjax.serve.responses import error_response, json_response
from charjax.serve.schemas import (
    completion_schema,
    copied_schema,
    detokenize_schema,
    tokenize_schema,
)

_logger = logging.getLogger(__name__)


def make_app(
    models: Mapping[str, ServedModel],
    limits: RequestLimits,
    *,
    key: str = "",
    hosts: Collection[str] = (),
    origins: Sequence[str] = (),
) -> Starlette:
    """The application of a server.

    Args:
      models: to serve, by name; the first one is the default.
      limits: of requests.
      key: that clients must send; "": none.
      hosts: names of this server in the Host header, beside IP addresses and localhost.
      origins: of the web pages that may use it, as "https://example.org"; "*": all.
    """
    handlers: dict[Any, Any] = {
        ProtocolError: _protocol_error,
        HTTPException: _http_error,
        Exception: _internal_error,
    }
    middleware = [Middleware(AccessChecks, key=key, hosts=hosts)]
    if origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client sends several of its own
        )
        middleware.insert(0, cors)
    return Starlette(
        routes=Handlers(models, limits).routes(has_key=bool(key)),
        middleware=middleware,
        exception_handlers=handlers,
    )


# Starlette calls handlers that are not `async` in a thread: too late where the server ends.
async def _protocol_error(request: Request, error: ProtocolError) -> Response:
    return error_response(error)


async def _internal_error(request: Request, error: Exception) -> Response:
    _logger.error("%s: internal error", request.url.path, exc_info=error)
    return error_response(ProtocolError(500, "internal error; see the server's log"))


async def _http_error(request: Request, error: HTTPException) -> Response:
    messages = {404: "there is no such path; see /openapi.json", 405: "method not allowed"}
    response = error_response(
        ProtocolError(error.status_code, messages.get(error.status_code, error.detail))
    )
    response.headers.update(error.headers or {})  # Allow, with 405
    return response


class Handlers:
    """What the server does for each path."""

    def __init__(self, models: Mapping[str, ServedModel], limits: RequestLimits) -> None:
        self._models, self._limits = models, limits

    def routes(self, *, has_key: bool) -> list[Route]:
        """All paths; `has_key` says whether clients must send a key."""
        operations = self._operations()
        document = openapi(operations, has_key=has_key)

        async def description(request: Request) -> Response:
            return json_response(document)

        others = [Route("/", self.page), Route("/openapi.json", description)]
        return [*others, *map(self._route, operations)]

    def _named(self, name: str | None) -> ServedModel:
        """The model of a name; None: the first.

        Raises:
          ProtocolError: there is no such model.
        """
        if name is None:
            return next(iter(self._models.values()))
        if name not in self._models:
            raise ProtocolError(
                404,
                f"model: there is no {name[:80]!r}; this server has {', '.join(self._models)}",
                param="model",
                code="model_not_found",
            )
        return self._models[name]

    def _operations(self) -> list[Operation]:
        limits = self._limits
        return [
            Operation("/health", self.health, answers.HEALTH),
            Operation("/v1/models", self.list_models, answers.MODELS),
            Operation("/v1/models/{name:path}", self.model, answers.MODEL, parameter=NAME),
            Operation(
                "/v1/completions", self.completions, answers.COMPLETION, completion_schema(limits)
            ),
            Operation("/v1/copied", self.copied, answers.PASSAGES, copied_schema(limits)),
            Operation("/tokenize", self.tokenize, answers.TOKENS, tokenize_schema(limits)),
            Operation("/detokenize", self.detokenize, answers.PROMPT, detokenize_schema(limits)),
            Operation("/tokenizer_info", self.tokenizer_info, answers.TOKENIZER, parameter=MODEL),
        ]

    def _route(self, operation: Operation) -> Route:
        if operation.body is None:
            return Route(operation.path, operation.handle)
        parse = body_parser(operation.body)

        async def endpoint(request: Request) -> Response:
            try:
                body = await read_body(request, self._limits.max_body)
                return await operation.handle(request, parse(body))
            except asyncio.CancelledError:  # uvicorn's, whose answer would be an internal error
                raise shutting_down() from None

        return Route(operation.path, endpoint, methods=["POST"])

    async def page(self, request: Request) -> Response:
        """The page to write with."""
        return HTMLResponse(PAGE, headers=PAGE_HEADERS)

    async def health(self, request: Request) -> Response:
        """Whether the server is up."""
        return json_response({"status": "ok"})

    async def list_models(self, request: Request) -> Response:
        """The models."""
        return json_response(
            {"object": "list", "data": [model.to_json() for model in self._models.values()]}
        )

    async def model(self, request: Request) -> Response:
        """One model."""
        return json_response(self._named(request.path_params["name"]).to_json())

    async def tokenizer_info(self, request: Request) -> Response:
        """The special tokens, as vLLM names them."""
        model = self._named(request.query_params.get("model"))
        start = model.start_string
        return json_response(
            {
                "tokenizer_class": "charjax.Vocab",
                "vocab_size": len(model.trained.vocab),
                "model_max_length": self._limits.max_prompt,
                "bos_token": start,
                "eos_token": start,
                "pad_token": None,
                "unk_token": None if model.trained.vocab.unk_id is None else "\ufffd",
                "chat_template": None,
            }
        )

    async def tokenize(self, request: Request, fields: Fields) -> Response:
        """The ids of a text."""
        model = self._named(fields["model"])
        with as_field_errors("prompt"):
            ids = model.tokenize(
                fields["prompt"],
                add_start=fields["add_special_tokens"],
                unknown=fields["unknown"],
            )
        strings = [token_string(model.trained.vocab, token) for token in ids]
        return json_response(
            {
                "count": len(ids),
                "max_model_len": self._limits.max_prompt,
                "tokens": ids,
                "token_strs": strings if fields["return_token_strs"] else None,
            }
        )

    async def detokenize(self, request: Request, fields: Fields) -> Response:
        """The text of ids."""
        model = self._named(fields["model"])
        with as_field_errors("tokens"):
            prompt = model.prompt_of_ids(fields["tokens"])
        return json_response({"prompt": prompt.text(model.trained.vocab)})

    async def copied(self, request: Request, fields: Fields) -> Response:
        """Passages of a text that the training text has, too."""
        model = self._named(fields["model"])
        passages = await asyncio.to_thread(
            copied_passages, model.trained, fields["text"], fields["min_chars"]
        )
        return json_response(
            {"passages": [{"start": start, "end": end} for start, end in passages]}
        )

    async def completions(self, request: Request, fields: Fields) -> Response:
        """Texts that continue prompts."""
        model = self._named(fields["model"])
        completion = parse_completion(fields, model, self._limits)
        writing = completion.writing
        if max_copy := writing.controls.max_copy:
            copies = await asyncio.to_thread(table_against_copying, model.trained, max_copy)
            completion = replace(completion, writing=writing._replace(copies=copies))
        num_texts = completion.n * len(completion.prompts)
        pieces = PieceQueue(num_texts, self._limits.max_seconds)
        model.engine.submit(completion.texts(pieces))
        if fields["stream"]:
            return EventStream(completion, pieces)
        return json_response(await whole_answer(completion, pieces, request))
