"""The command `charjax serve`: what it refuses, and how it ends."""

from __future__ import annotations

import importlib.util
import json
import signal
import socket
import threading
import urllib.request

import pytest

from charjax.cli.main import main
from tests.serve.process import serve


def fails(capsys, *arguments):
    """The exit code, and the message of one line."""
    code = main(["serve", *arguments])
    *_, line = capsys.readouterr().err.splitlines()
    return code, line


def test_a_missing_package_is_named_with_what_installs_it(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name)
    )
    code, line = fails(capsys)
    assert (code, "pip install 'charjax[serve]'" in line) == (2, True)


def test_a_port_that_is_taken_is_an_error_of_the_host(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = fails(capsys, f"--port={port}")
    assert code == 4
    assert (
        line == f"charjax: --host=127.0.0.1 --port={port}: Address already in use; give another one"
    )


def test_a_malformed_host_is_refused(capsys):
    for host in ("a..b", "a" * 64):
        code, line = fails(capsys, f"--host={host}", "--port=0")
        assert (code, line.startswith(f"charjax: --host={host}: must be an IP")) == (2, True)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(
            ("--allow_host", value)
            for value in ("", "*", "example.org:80", "http://x", "bücher.de")
        ),
        *(("--allow_origin", value) for value in ("", "example.org", "https://example.org/")),
        ("--allow_origin", "https://Example.org"),
    ],
)
def test_a_host_or_origin_that_no_client_sends_is_refused(capsys, flag, value):
    code, line = fails(capsys, f"{flag}={value}", "--port=0")
    assert (code, line.startswith(f"charjax: argument {flag}: {value!r} must be")) == (2, True)


def test_a_key_that_clients_cannot_send_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("CHARJAX_API_KEY", "schlüssel")
    code, line = fails(capsys, "--port=0")
    assert (code, line.startswith("charjax: CHARJAX_API_KEY: must have one word")) == (2, True)


@pytest.mark.parametrize("content", [b"", b"two words", b"\xff", "schlüssel".encode(), None])
def test_a_key_file_without_a_key_is_refused(tmp_path, capsys, content):
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    code, line = fails(capsys, f"--key_file={file}", "--port=0")
    assert (code, f"--key_file={file}: " in line) == (2, True)


def test_a_limit_and_a_folder_are_checked_before_anything_is_served(tmp_path, capsys):
    assert fails(capsys, "--max_texts=0") == (2, "charjax: --max_texts=0: must be at least 1")
    code, line = fails(capsys, "--port=0", f"--workdir={tmp_path}")
    assert (code, str(tmp_path) in line) == (3, True)
    code, line = fails(capsys, "--port=70000")
    assert (code, "--port=70000" in line) == (2, True)


@pytest.mark.slow
def test_sigterm_lets_streams_finish():
    with serve("--max_queue=8") as served:
        body = json.dumps({"prompt": "a", "max_tokens": 3000, "stream": True, "seed": 1}).encode()
        ask = urllib.request.Request(
            f"{served.url}/v1/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(ask) as answer:
            first = answer.readline()
            threading.Timer(0.01, served.process.send_signal, [signal.SIGTERM]).start()
            rest = answer.read()
        assert first.startswith(b"data: {")
        assert rest.endswith(b"data: [DONE]\n\n")
        served.process.wait(60)
