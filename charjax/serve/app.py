"""The ASGI application: the routes of the server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from charjax.serve.access import AccessChecks
from charjax.serve.completions import Answer, fields_of, parse_completion
from charjax.serve.copies import copied_passages, table_against_copying
from charjax.serve.delivery import EventStream, Pieces, whole_answer
from charjax.serve.errors import ProtocolError, as_field_errors, client_gone
from charjax.serve.json_schema import Schema, parse_object
from charjax.serve.limits import RequestLimits
from charjax.serve.models import Models
from charjax.serve.openapi import openapi
from charjax.serve.page import PAGE_HEADERS, page_html
from charjax.serve.responses import error_response, json_response
from charjax.serve.schemas import (
    completion_schema,
    copied_schema,
    detokenize_schema,
    tokenize_schema,
)
from charjax.serve.text import token_string

_logger = logging.getLogger(__name__)

Fields = dict[str, Any]
_BODY_SECONDS = 30  # for a client to send its request


def make_app(
    models: Models,
    limits: RequestLimits,
    *,
    key: str = "",
    hosts: Collection[str] = (),
    origins: Sequence[str] = (),
) -> Starlette:
    """The application of a server.

    Args:
      models: to serve.
      limits: of requests.
      key: that clients must send; "": none.
      hosts: names of this server in the Host header, beside IP addresses and localhost.
      origins: of the web pages that may use it, as "https://example.org"; "*": all.
    """
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
        routes=Handlers(models, limits, has_key=bool(key)).routes(),
        middleware=middleware,
        exception_handlers={
            ProtocolError: lambda _, error: error_response(error),
            HTTPException: lambda _, error: _http_error(error),
            Exception: _internal_error,
        },
    )


def _internal_error(request: Request, error: Exception) -> Response:
    _logger.error("%s: internal error", request.url.path, exc_info=error)
    return error_response(ProtocolError(500, "internal error; see the server's log"))


def _http_error(error: HTTPException) -> Response:
    messages = {404: "there is no such path; see /openapi.json", 405: "method not allowed"}
    response = error_response(
        ProtocolError(error.status_code, messages.get(error.status_code, error.detail))
    )
    response.headers.update(error.headers or {})  # Allow, with 405
    return response


class Handlers:
    """What the server does for each path."""

    def __init__(self, models: Models, limits: RequestLimits, *, has_key: bool) -> None:
        self._models, self._limits = models, limits
        self._openapi = openapi(limits, has_key=has_key)
        self._completion = completion_schema(limits)

    def routes(self) -> list[Route]:
        """The paths."""
        limits, post = self._limits, self._post
        return [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/openapi.json", self.description),
            Route("/tokenizer_info", self.tokenizer_info),
            Route("/v1/models", self.list_models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/copied", post(copied_schema(limits), self.copied), methods=["POST"]),
            Route("/tokenize", post(tokenize_schema(limits), self.tokenize), methods=["POST"]),
            Route(
                "/detokenize", post(detokenize_schema(limits), self.detokenize), methods=["POST"]
            ),
        ]

    def _post(
        self, schema: Schema, handle: Callable[[Fields], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return await handle(fields_of(parse_object(await self._body(request)), schema))

        return endpoint

    async def _body(self, request: Request) -> bytes:
        """The body.

        Raises:
          ProtocolError: it is not called JSON, is too large, or does not arrive in time or in full.
        """
        content_type = request.headers.get("content-type", "").partition(";")[0]
        if content_type.strip().lower() != "application/json":
            raise ProtocolError(415, "send the header Content-Type: application/json")
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self._limits.max_body:
                        raise ProtocolError(413, f"body: above {self._limits.max_body:,} bytes")
        except TimeoutError:
            raise ProtocolError(408, "the body did not arrive in time") from None
        except ClientDisconnect:
            raise client_gone() from None
        return bytes(body)

    async def page(self, request: Request) -> Response:
        """The page to write with."""
        return HTMLResponse(page_html(), headers=PAGE_HEADERS)

    async def health(self, request: Request) -> Response:
        """Whether the server is up."""
        return json_response({"status": "ok"})

    async def description(self, request: Request) -> Response:
        """The OpenAPI document."""
        return json_response(self._openapi)

    async def list_models(self, request: Request) -> Response:
        """All models."""
        return json_response(
            {"object": "list", "data": [model.to_json() for model in self._models]}
        )

    async def model(self, request: Request) -> Response:
        """One model."""
        return json_response(self._models.get(request.path_params["name"]).to_json())

    async def tokenizer_info(self, request: Request) -> Response:
        """The special tokens of a model, as vLLM names them."""
        model = self._models.get(request.query_params.get("model"))
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

    async def tokenize(self, fields: Fields) -> Response:
        """The ids of a text."""
        model = self._models.get(fields["model"])
        with as_field_errors("prompt"):
            ids = model.tokenize(
                fields["prompt"],
                add_start=bool(fields["add_special_tokens"]),
                unknown=fields["unknown"] or "error",
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

    async def detokenize(self, fields: Fields) -> Response:
        """The text of ids."""
        model = self._models.get(fields["model"])
        with as_field_errors("tokens"):
            prompt = model.prompt_of_ids(fields["tokens"])
        text = model.trained.vocab.decode(prompt.ids[prompt.hidden :])
        return json_response({"prompt": text})

    async def copied(self, fields: Fields) -> Response:
        """The passages of a text that occur in the training text."""
        model = self._models.get(fields["model"])
        passages = await asyncio.to_thread(
            copied_passages, model.trained, fields["text"], fields["min_chars"]
        )
        return json_response(
            {"passages": [{"start": start, "end": end} for start, end in passages]}
        )

    async def completions(self, request: Request) -> Response:
        """Texts of a model."""
        fields = fields_of(parse_object(await self._body(request)), self._completion)
        model = self._models.get(fields["model"])
        completion = parse_completion(fields, model, self._limits)
        writing = completion.writing
        if max_copy := writing.controls.max_copy:
            copies = await asyncio.to_thread(table_against_copying, model.trained, max_copy)
            completion = replace(completion, writing=writing._replace(copies=copies))
        pieces = Pieces(completion.n * len(completion.prompts), self._limits.max_seconds)
        model.engine.submit(completion.texts(pieces.sink))
        answer = Answer(completion)
        if completion.stream:
            return EventStream(answer, pieces)
        return json_response(await whole_answer(answer, pieces, request))
