from __future__ import annotations

import errno
import hashlib
import io
import os
import socket
import time
from dataclasses import replace
from urllib.request import Request

import pytest

from charjax.data.sources import transfer
from charjax.data.sources.download import Limits, fetch
from charjax.data.sources.transfer import RemoteFile, TransferError
from charjax.errors import HostError
from charjax.runtime.display import no_progress

from ..loopback import BODY, MISBEHAVIOURS

DIGEST = hashlib.sha256(BODY).hexdigest()
HASTY = Limits(timeout_s=0.2, grace_s=0.6, bytes_per_s=1e9, pauses_s=(0.001, 0.002))
PATIENT = replace(HASTY, timeout_s=5.0, grace_s=30.0)  # where a slow machine is no error


def get(url, target, *, sha256=DIGEST, min_bytes=1, progress=no_progress, limits=HASTY):
    file = RemoteFile(url=url, sha256=sha256, min_bytes=min_bytes, max_bytes=256_000)
    fetch(file, target, progress=progress, limits=limits)


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_arrives_whole_under_its_name_alone(serve, tmp_path, announced):
    headers = {} if announced else {"Content_Length": ""}
    server = serve(lambda call: call.answer(BODY, **headers))
    seen, target = [], tmp_path / "new" / "folder" / "file"

    def keep(done: int, total: int) -> None:
        seen.append((done, total))

    get(server.url + "/file", target, progress=keep, limits=PATIENT)
    assert target.read_bytes() == BODY
    assert os.listdir(target.parent) == ["file"]
    assert seen == sorted(seen)
    assert seen[-1] == (len(BODY), len(BODY) if announced else 0)


def test_a_server_that_keeps_the_connection_open_does_not_delay_the_end(serve, tmp_path):
    def behave(call):
        call.answer(BODY)
        call.ended.wait(60)

    get(serve(behave).url, tmp_path / "file", limits=PATIENT)
    assert (tmp_path / "file").read_bytes() == BODY


def test_transient_errors_are_retried(serve, tmp_path):
    def behave(call):
        if call.number == 0:
            return call.reset()
        call.answer(BODY, "503 Busy" if call.number == 1 else "200 OK")

    server = serve(behave)
    get(server.url, tmp_path / "file", limits=PATIENT)
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.connections == 3


OTHER_DIGEST = hashlib.sha256(BODY[::-1]).hexdigest()
# What is said of each, and how often it is asked.
ENDINGS = {
    "resets": ("reset", 3),
    "resets_halfway": ("reset|broke off", 3),
    "breaks_off": (f"broke off after {len(BODY) - 1} of {len(BODY)} bytes", 3),
    "breaks_off_a_chunk": ("cannot be reached", 3),
    "talks_nonsense": ("cannot be reached", 3),
    "says_nothing": ("cannot be reached", 3),
    "fails": ("answered 500", 3),
    "misses": ("answered 404", 1),
    "sends_other_bytes": (f"{OTHER_DIGEST}, expected {DIGEST}", 1),
    "announces_too_much": ("announces 1000000000000 bytes", 1),
    "sends_for_ever": (f"sends more than {len(BODY)} bytes", 1),
    "sends_headers_for_ever": ("cannot be reached", 3),
    "redirects_to_itself": ("redirects too often", 2),
    "redirects_on_and_on": ("redirects too often", 6),
    "redirects_to_plain_http": ("http://example.org/file, which is not https", 1),
    "redirects_to_a_file": ("redirects", 1),
    "redirects_nowhere": ("cannot be reached", 1),
    "stalls": ("no answer in time", None),  # once, or until the time is over
    "stalls_halfway": ("no answer in time", None),
    "trickles_headers": ("no answer in time", 1),
    "trickles": ("too slow", 1),
}


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_misbehaviour_ends_soon_in_one_line_and_leaves_nothing(serve, tmp_path, name):
    server, (words, tries) = serve(MISBEHAVIOURS[name]), ENDINGS[name]
    limits = HASTY if name.startswith(("stalls", "trickles")) else PATIENT
    begin = time.monotonic()
    with pytest.raises(HostError, match=words) as caught:
        get(f"{server.url}/file?secret=1", tmp_path / "file", limits=limits)
    assert time.monotonic() - begin < 30
    assert os.listdir(tmp_path) == []
    assert server.connections in ([tries] if tries else [1, 2, 3])
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{server.url}/file: ")
    assert str(tmp_path / "file") in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"<html>Sign in</html>" * 50, "text/html; charset=utf-8", "a web page"),
        (b"short", "text/plain", "sent 5 bytes, expected at least 100"),
    ],
)
def test_without_a_digest_the_kind_and_the_size_must_be_plausible(
    serve, tmp_path, body, kind, words
):
    server = serve(lambda call: call.answer(body, Content_Type=kind))
    with pytest.raises(HostError, match=words):
        get(server.url, tmp_path / "file", sha256="", min_bytes=100)
    assert os.listdir(tmp_path) == []


def test_five_redirects_are_followed(serve, tmp_path):
    def behave(call):
        if call.number < 5:
            return call.answer(status="302 Found", Location=f"/{call.number}")
        call.answer(BODY)

    get(serve(behave).url, tmp_path / "file", limits=PATIENT)
    assert (tmp_path / "file").read_bytes() == BODY


def test_no_redirect_leads_from_https_down_to_http():
    redirects = transfer._RedirectHandler(pinned=True)
    request, connection = Request("https://localhost/file"), io.BytesIO()
    with pytest.raises(TransferError, match="redirects to http://localhost/other"):
        redirects.redirect_request(request, connection, 302, "", {}, "http://localhost/other")
    assert connection.closed


@pytest.mark.parametrize(
    ("url", "sha256", "allowed"),
    [
        ("https://example.org/file", "", True),
        ("http://example.org/file", DIGEST, False),
        ("http://mattmahoney.net/dc/file", DIGEST, True),
        ("http://mattmahoney.net/dc/file", "", False),
        ("http://mattmahoney.net.example.org/file", DIGEST, False),
        ("file:///etc/hostname", DIGEST, False),
        ("ftp://localhost/file", DIGEST, False),
    ],
)
def test_which_addresses_are_asked_at_all(monkeypatch, tmp_path, url, sha256, allowed):
    def refuse(*args, **kwargs):
        raise ConnectionRefusedError("refused by the test")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(HostError, match="refused by the test" if allowed else "not https"):
        get(url, tmp_path / "file", sha256=sha256, limits=PATIENT)


def test_a_failure_leaves_an_older_file_as_it_was(serve, tmp_path):
    (tmp_path / "file").write_bytes(b"older")
    server = serve(MISBEHAVIOURS["sends_other_bytes"])
    with pytest.raises(HostError):
        get(server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_named_as_such(serve, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    server = serve(lambda call: call.answer(BODY))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HostError, match=r"file: cannot be written .*No space left"):
        get(server.url, tmp_path / "file")
    assert os.listdir(tmp_path) == []
    assert server.connections == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(HostError, match="taken/file: cannot be written"):
        get("https://example.org/", tmp_path / "taken" / "file")


def test_an_interrupt_leaves_nothing(serve, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    server = serve(lambda call: call.answer(BODY))
    with pytest.raises(KeyboardInterrupt):
        get(server.url, tmp_path / "file", progress=interrupt)
    assert os.listdir(tmp_path) == []
