"""The command `charjax serve`: what it refuses, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import sys
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
    monkeypatch.delitem(sys.modules, "charjax.serve.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, line = fails(capsys)
    assert code == 2
    assert "the package uvicorn is not installed; run: pip install 'charjax[serve]'" in line


def test_a_port_that_is_taken_is_an_error_of_the_host(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = fails(capsys, f"--port={port}")
    assert code == 4
    assert (
        line == f"charjax: --host=127.0.0.1 --port={port}: Address already in use; give another one"
    )


@pytest.mark.parametrize(
    ("flag", "values", "message"),
    [
        ("--host", ["a..b", "a" * 64], "--host={0}: must be an IP"),
        ("--port", ["70000"], "--port={0}: must be from"),
        ("--max_tokens", ["0", "1000000001"], "--max_tokens={0}: must be from 1 to 1000000000"),
        ("--max_texts", ["0"], "--max_texts={0}: must be at least 1"),
        (
            "--allow_host",
            ["", "*", "example.org:80", "http://x", "bücher.de"],
            "argument --allow_host: {0!r} must be a name",
        ),
        (
            "--allow_origin",
            ["", "example.org", "https://example.org/", "https://Example.org"],
            "argument --allow_origin: {0!r} must be as https://example.org",
        ),
    ],
)
def test_a_value_that_cannot_be_served_is_refused(capsys, flag, values, message):
    for value in values:
        code, line = fails(capsys, "--port=0", f"{flag}={value}")
        assert (code, line.startswith(f"charjax: {message.format(value)}")) == (2, True), line


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


def test_a_folder_without_a_model_is_not_served(tmp_path, capsys):
    code, line = fails(capsys, "--port=0", f"--workdir={tmp_path}")
    assert (code, str(tmp_path) in line) == (3, True)


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
        assert served.process.stderr is not None
        assert served.process.stderr.readline().startswith("1 answer may take 10 more seconds; ")
        served.process.wait(60)
