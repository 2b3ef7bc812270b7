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

from charjax.data import download
from charjax.data.download import Limits, RemoteFile, TransferError, fetch
from charjax.errors import HostError
from charjax.runtime.display import no_progress

from .loopback import answer, reset

BODY = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(BODY).hexdigest()
HASTY = Limits(timeout_s=0.2, grace_s=0.6, bytes_per_s=1e9, pauses_s=(0.001, 0.002))
PATIENT = replace(HASTY, timeout_s=5.0, grace_s=30.0)  # where a slow machine is no error


def get(url, target, *, sha256=DIGEST, min_bytes=1, progress=no_progress, limits=HASTY):
    file = RemoteFile(url=url, sha256=sha256, min_bytes=min_bytes, max_bytes=256_000)
    fetch(file, target, progress=progress, limits=limits)


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_arrives_whole_under_its_name_alone(serve, tmp_path, announced):
    headers = {} if announced else {"Content_Length": ""}
    server = serve(lambda connection, path, n: answer(connection, BODY, **headers))
    seen, target = [], tmp_path / "new" / "folder" / "file"

    def keep(done: int, total: int) -> None:
        seen.append((done, total))

    get(server.url + "/file", target, progress=keep, limits=PATIENT)
    assert target.read_bytes() == BODY
    assert os.listdir(target.parent) == ["file"]
    assert seen == sorted(seen)
    assert seen[-1] == (len(BODY), len(BODY) if announced else 0)


def test_a_server_that_keeps_the_connection_open_does_not_delay_the_end(serve, tmp_path):
    def behave(connection, path, number):
        answer(connection, BODY)
        server.ended.wait(60)

    server = serve(behave)
    get(server.url, tmp_path / "file", limits=PATIENT)
    assert (tmp_path / "file").read_bytes() == BODY


def test_transient_errors_are_retried(serve, tmp_path):
    def behave(connection, path, number):
        if number == 0:
            return reset(connection)
        answer(connection, BODY, "503 Busy" if number == 1 else "200 OK")

    server = serve(behave)
    get(server.url, tmp_path / "file", limits=PATIENT)
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.connections == 3


def send_slowly(server, connection, data: bytes) -> None:
    for i in range(min(len(data), 3000)):  # a minute, should nobody hang up
        connection.sendall(data[i : i + 1])
        if server.ended.wait(0.02):
            return


def stalls(server, connection, path):
    server.ended.wait(60)


def stalls_in_body(server, connection, path):
    answer(connection, BODY[:100], Content_Length=str(len(BODY)))
    server.ended.wait(60)


def trickles_headers(server, connection, path):
    send_slowly(server, connection, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500)


def trickles_body(server, connection, path):
    answer(connection, Content_Length=str(len(BODY)))
    send_slowly(server, connection, BODY)


def resets(server, connection, path):
    reset(connection)


def resets_in_body(server, connection, path):
    answer(connection, BODY[:100], Content_Length=str(len(BODY)))
    reset(connection)


def breaks_off(server, connection, path):
    answer(connection, BODY[:-1], Content_Length=str(len(BODY)))


def breaks_off_a_chunk(server, connection, path):
    answer(connection, b"ff\r\nabc", Content_Length="", Transfer_Encoding="chunked")


def talks_nonsense(server, connection, path):
    connection.sendall(b"\x00\x01 nonsense\r\n\r\n")


def says_nothing(server, connection, path):
    pass


def fails(server, connection, path):
    answer(connection, b"oops", "500 Oops")


def misses(server, connection, path):
    answer(connection, b"no", "404 Not Found")


def sends_other_bytes(server, connection, path):
    answer(connection, BODY[::-1])


def announces_too_much(server, connection, path):
    answer(connection, BODY, Content_Length=str(10**12))


def never_ends(server, connection, path):
    answer(connection, Content_Length="")
    while not server.ended.is_set():
        connection.sendall(BODY)


def redirects_to_itself(server, connection, path):
    answer(connection, status="302 Found", Location=path)


def redirects_on_and_on(server, connection, path):
    answer(connection, status="302 Found", Location=f"{path}x")


def redirects_to_plain_http(server, connection, path):
    answer(connection, status="302 Found", Location="http://example.org/file")


def redirects_to_a_file(server, connection, path):
    answer(connection, status="302 Found", Location="file:///etc/hostname")


def redirects_nowhere(server, connection, path):
    answer(connection, status="302 Found", Location="http://127.0.0.1:port/")


@pytest.mark.parametrize(
    ("misbehave", "words", "tries"),
    [
        (stalls, "no answer in time", (1, 3)),
        (stalls_in_body, "no answer in time", (1, 3)),
        (trickles_headers, "no answer in time", (1, 1)),
        (trickles_body, "too slow", (1, 1)),
        (resets, "reset", (3, 3)),
        (resets_in_body, "reset|broke off", (3, 3)),
        (breaks_off, f"broke off after {len(BODY) - 1} of {len(BODY)} bytes", (3, 3)),
        (breaks_off_a_chunk, "cannot be reached", (3, 3)),
        (talks_nonsense, "cannot be reached", (3, 3)),
        (says_nothing, "cannot be reached", (3, 3)),
        (fails, "answered 500", (3, 3)),
        (misses, "answered 404", (1, 1)),
        (sends_other_bytes, f"{hashlib.sha256(BODY[::-1]).hexdigest()}, expected {DIGEST}", (1, 1)),
        (announces_too_much, "announces 1000000000000 bytes", (1, 1)),
        (never_ends, f"sends more than {len(BODY)} bytes", (1, 1)),
        (redirects_to_itself, "redirects too often", (2, 2)),
        (redirects_on_and_on, "redirects too often", (6, 6)),
        (redirects_to_plain_http, "http://example.org/file, which is not https", (1, 1)),
        (redirects_to_a_file, "which is not https|answered|redirects", (1, 1)),
        (redirects_nowhere, "cannot be reached", (1, 1)),
    ],
)
def test_misbehaviour_ends_soon_in_one_line_and_leaves_nothing(
    serve, tmp_path, misbehave, words, tries
):
    server = serve(lambda connection, path, n: misbehave(server, connection, path))
    waits = misbehave in (stalls, stalls_in_body, trickles_headers, trickles_body)
    begin = time.monotonic()
    with pytest.raises(HostError, match=words) as caught:
        get(
            server.url + "/file?secret=1",
            tmp_path / "file",
            limits=HASTY if waits else PATIENT,
        )
    assert time.monotonic() - begin < 30
    assert os.listdir(tmp_path) == []
    assert tries[0] <= server.connections <= tries[1]
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
    server = serve(lambda connection, path, n: answer(connection, body, Content_Type=kind))
    with pytest.raises(HostError, match=words):
        get(server.url, tmp_path / "file", sha256="", min_bytes=100)
    assert os.listdir(tmp_path) == []


def test_five_redirects_are_followed(serve, tmp_path):
    def behave(connection, path, number):
        if number < 5:
            return answer(connection, status="302 Found", Location=f"/{number}")
        answer(connection, BODY)

    get(serve(behave).url, tmp_path / "file", limits=PATIENT)
    assert (tmp_path / "file").read_bytes() == BODY


def test_no_redirect_leads_from_https_down_to_http():
    redirects = download._RedirectHandler(pinned=True)
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
        get(url, tmp_path / "file", sha256=sha256)


def test_a_failure_leaves_an_older_file_as_it_was(serve, tmp_path):
    (tmp_path / "file").write_bytes(b"older")
    server = serve(lambda connection, path, n: sends_other_bytes(None, connection, path))
    with pytest.raises(HostError):
        get(server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_named_as_such(serve, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    server = serve(lambda connection, path, n: answer(connection, BODY))
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

    server = serve(lambda connection, path, n: answer(connection, BODY))
    with pytest.raises(KeyboardInterrupt):
        get(server.url, tmp_path / "file", progress=interrupt)
    assert os.listdir(tmp_path) == []
