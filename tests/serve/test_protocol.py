"""What the server refuses, each in the protocol's form; and what it says of itself."""

from __future__ import annotations

import asyncio
import json

import fastjsonschema
import pytest

from charjax.errors import InputError
from charjax.serve import schemas
from charjax.serve.limits import RequestLimits
from tests.serve.asgi import JSON, complete, get, post, request
from tests.serve.conftest import LIMITS

COMPLETION = schemas.completion_schema(LIMITS)


def refused(response, status, param=None):
    """The message of an error in the protocol's form."""
    assert response.status == status, response.body
    assert response.headers["content-type"] == "application/json"
    error = response.json["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert "\n" not in error["message"]
    return error["message"]


# Requests that are not valid

WRONG = {
    "model": [1],
    "prompt": [{}, ["a", 1], [0, "a"], [[0], "a"], [0.5], [-1], 1, "a" * 61, [0] * 61],
    "n": [0, 13, 1.5, "1", True],
    "max_tokens": [-1, 5001, 1e300],
    "stop": ["", [""], 5, ["a"] * 17, "a" * 101],
    "until_lines": [-1],
    "seed": [-1, 2**32, 0.5],
    "unknown": ["drop"],
    "temperature": [-0.1, 101, "hot"],
    "top_p": [0, 1.01],
    "top_k": [-2],
    "min_p": [-0.1, 1.1],
    "repetition_penalty": [0, 11],
    "repetition_window": [0],
    "logit_bias": [{"a": 1}, {"01": 1}, {"0": 101}, {"0": "1"}, [], {"11": 1}],
    "forbid": [1, "abcdefghij\n", "z"],
    "only": [1, "z"],
    "max_copy": [-1, 5],  # the text of this model is not here
    "echo": [1, "true"],
    "logprobs": [-1, 21, True],
    "stream": [1],
    "stream_options": [1, {"other": True}, {"include_usage": True}],
    "user": [1],
    "best_of": [2, 0],
    "suffix": ["end"],
    "presence_penalty": [1],
    "frequency_penalty": [-1],
}


def test_the_list_of_wrong_values_has_every_field():
    assert WRONG.keys() == COMPLETION["properties"].keys()


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(app, field):
    for value in WRONG[field]:
        response = post(app, "/v1/completions", {field: value})
        message = response.json["error"]["message"]
        assert response.status == 400, (value, message)
        assert response.json["error"]["param"].startswith(field), (value, message)
        assert field in message


def test_the_message_has_the_value_and_the_rule(app):
    for body, message in (
        ({"prompt": ["a", "a" * 61]}, 'prompt[1]: "aaaaaaa'),
        ({"prompt": [[0], [0.5]]}, "prompt[1][0]: 0.5 must be integer; see /openapi.json"),
        ({"logit_bias": {"a": 1}}, 'logit_bias: {"a": 1} must have ids of tokens as names;'),
        ({"prompt": [0, "a"]}, "prompt: the items of a list must be all strings, all ids, or all"),
    ):
        param = message.partition(":")[0]
        assert refused(post(app, "/v1/completions", body), 400, param).startswith(message)


def test_an_integer_may_be_written_with_a_point(app):
    assert complete(app, prompt=[0.0], n=2.0, max_tokens=1.0)["usage"]["completion_tokens"] == 2


def test_unknown_characters_are_named_or_read_as_unk(app):
    assert "U+007A 'z'" in refused(post(app, "/v1/completions", {"prompt": "az"}), 400, "prompt")
    assert "id 11" in refused(post(app, "/v1/completions", {"prompt": [11]}), 400, "prompt")


def test_a_message_names_fields_and_not_flags(app):
    body = {"forbid": "--a", "only": "a"}
    assert refused(post(app, "/v1/completions", body), 400, "forbid").startswith(
        "forbid=--a: leaves none of only=a"
    )


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"\xff", b'{"n": NaN}', b"[" * 4000, b'{"n": ' + b"1" * 4900 + b"}"],
)
def test_a_body_that_is_not_a_json_object_is_refused(app, body):
    refused(post(app, "/v1/completions", body), 400)


def test_a_client_that_leaves_within_its_body_is_no_internal_error(app, caplog):
    assert post(app, "/v1/completions", b'{"prompt"', cut=True).status == 499
    assert not caplog.records


def test_errors_need_no_thread(app, monkeypatch):
    """A server that ends would not wait for it, nor send the error."""
    monkeypatch.setattr("anyio.to_thread.run_sync", None)
    refused(post(app, "/v1/completions", b"{"), 400)
    refused(get(app, "/v1/chat"), 404)


def test_half_of_a_surrogate_pair_is_refused(app):
    body = b'{"prompt": "a\\ud800", "x\\ud800": 1}'
    refused(post(app, "/v1/completions", body), 400)
    refused(post(app, "/v1/completions", b'{"prompt": "a\\ud800"}'), 400, "prompt")


def test_an_unknown_field_or_model_or_path_is_named(app):
    message = refused(post(app, "/v1/completions", {"promt": "a"}), 400)
    assert message == "promt: no such field; see /openapi.json"
    message = refused(post(app, "/v1/completions", {"model": "gpt"}), 404, "model")
    assert "random, names, bytes" in message
    refused(get(app, "/v1/models/gpt"), 404, "model")
    refused(get(app, "/v1/chat"), 404)
    refused(get(app, "/v1/completions"), 405)


# Limits


def test_the_limits_of_a_request(app):
    assert "5,000 bytes" in refused(post(app, "/v1/completions", b" " * 5001), 413)
    message = refused(post(app, "/v1/completions", {"n": 7, "prompt": ["a", "b"]}), 400, "n")
    assert "12 texts" in message
    refused(post(app, "/v1/completions", {"prompt": ["a"] * 13}), 400, "n")


def test_the_time_limit(server):
    app = server.with_options(RequestLimits(max_seconds=1, max_tokens=10**8))
    body = {"max_tokens": 10**8, "prompt": "a"}
    response = post(app, "/v1/completions", body)
    assert "within 1 s" in refused(response, 504)
    assert response.json["error"]["code"] == "timeout"
    streamed = post(app, "/v1/completions", body | {"stream": True})
    *_, last, end = streamed.body.decode().split("\n\n")
    assert end == ""
    assert json.loads(last.removeprefix("data: ")) == response.json


@pytest.mark.parametrize("field", RequestLimits.__dataclass_fields__)
def test_a_limit_below_one_is_refused(field):
    with pytest.raises(InputError, match=rf"^--{field}=0: "):
        RequestLimits(**{field: 0})


# Who may ask


def test_a_key_is_asked_for_where_there_is_one(server):
    app = server.with_options(key="s3cret")
    for headers in ({}, {"authorization": "Bearer s3cre"}, {"authorization": "s3cret"}):
        response = get(app, "/v1/models", headers=JSON | headers)
        refused(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
    assert get(app, "/v1/models", headers=JSON | {"authorization": "Bearer s3cret"}).status == 200
    assert get(app, "/health").status == get(app, "/").status == 200
    assert get(server.app, "/v1/models").status == 200


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models"])
def test_a_name_that_leads_here_by_dns_is_not_this_server(server, path):
    for host in ("evil.example", "127.0.0.1.evil.example:8000", "", "[evil]"):
        refused(get(server.app, path, headers={"host": host}), 403)
    for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:80", "[::1]:8000", "192.168.0.2"):
        assert get(server.app, path, headers={"host": host}).status == 200
    app = server.with_options(hosts=["box.example"])
    assert get(app, path, headers={"host": "box.example:8000"}).status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_form_of_another_site_is_not_json(app, kind):
    headers = JSON | {"content-type": kind}
    for path in ("/v1/completions", "/tokenize", "/detokenize", "/v1/copied"):
        refused(post(app, path, {}, headers=headers), 415)


def test_other_sites_are_allowed_if_asked_for(server):
    origin = {"origin": "https://site.example"}
    header = "access-control-allow-origin"
    assert header not in get(server.app, "/v1/models", headers=JSON | origin).headers
    app = server.with_options(origins=["https://site.example"])
    assert get(app, "/v1/models", headers=JSON | origin).headers[header] == origin["origin"]


@pytest.mark.parametrize(
    ("site", "status"), [("https://site.example", 200), ("https://evil.example", 400)]
)
def test_a_browser_may_send_the_headers_of_openais_client(server, site, status):
    app = server.with_options(origins=["https://site.example"], key="s3cret")
    asked = {
        "origin": site,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }
    response = asyncio.run(request(app, "OPTIONS", "/v1/completions", headers=JSON | asked))
    assert response.status == status
    assert ("access-control-allow-origin" in response.headers) == (status == 200)


# What the server says of itself


def test_the_answers_have_the_published_form(app):
    document = get(app, "/openapi.json").json

    def check(answer, method, path, status="200"):
        content = document["paths"][path][method]["responses"][status]["content"]
        schema = content["application/json"]["schema"]
        name = schema.get("$ref", "").rpartition("/")[2]
        fastjsonschema.validate(document["components"]["schemas"][name] if name else schema, answer)

    for path in ("/health", "/v1/models", "/tokenizer_info"):
        check(get(app, path).json, "get", path)
    check(get(app, "/v1/models/names").json, "get", "/v1/models/{name}")
    whole = complete(app, prompt="ab", max_tokens=3, echo=True, logprobs=2)
    check(whole, "post", "/v1/completions")
    for path, body in (("/tokenize", {"prompt": "ab"}), ("/detokenize", {"tokens": [0, 1]})):
        check(post(app, path, body).json, "post", path)
    check(post(app, "/v1/completions", {"n": 0}).json, "post", "/v1/completions", "400")
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        check(whole | {"more": 1}, "post", "/v1/completions")


def test_the_models_are_listed(app):
    models = get(app, "/v1/models").json["data"]
    assert [model["id"] for model in models] == ["random", "names", "bytes"]
    assert models[0]["charjax"]["characters"] == "abcdefghij\n"
    assert get(app, "/v1/models/names").json == models[1]


def test_a_text_and_its_ids(app):
    ids = post(app, "/tokenize", {"prompt": "bca", "return_token_strs": True}).json
    assert ids == {"count": 3, "max_model_len": 60, "tokens": [1, 2, 0], "token_strs": [*"bca"]}
    assert post(app, "/detokenize", {"tokens": ids["tokens"]}).json == {"prompt": "bca"}
    refused(post(app, "/tokenize", {"prompt": "z"}), 400, "prompt")
    assert "['prompt']" in refused(post(app, "/tokenize", {}), 400)
    refused(post(app, "/detokenize", {"tokens": [99]}), 400, "tokens")


@pytest.mark.parametrize(("model", "start"), [("random", 10), ("names", 3), ("bytes", 0)])
def test_the_start_token_has_a_string(app, model, start):
    info = get(app, f"/tokenizer_info?model={model}").json
    body = {"prompt": info["eos_token"], "add_special_tokens": False, "model": model}
    if model == "bytes":  # half of a character has no string that is a prompt
        return
    assert post(app, "/tokenize", body).json["tokens"] == [start]


def test_documents_start_with_their_boundary(app):
    body = {"model": "names", "prompt": "ab"}
    assert post(app, "/tokenize", body).json["tokens"] == [3, 0, 1]
    plain = post(app, "/tokenize", body | {"add_special_tokens": False}).json
    assert plain["tokens"] == [0, 1]


def test_documents_are_asked_for_one_by_one(app):
    body = {"model": "names", "prompt": "", "until_lines": 2}
    refused(post(app, "/v1/completions", body), 400, "until_lines")
