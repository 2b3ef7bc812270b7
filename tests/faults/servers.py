"""Twelve misbehaving servers on loopback: no bad file is kept, no download takes a minute.

The downloads use the default time-outs and run concurrently.
"""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

from charjax.data.download import RemoteFile, fetch
from charjax.errors import HostError
from tests.data.loopback import Server, answer, reset

_SECONDS = 60
_BODY = bytes(range(256)) * 4000
_Behave: TypeAlias = Callable[[socket.socket, str, int], None]


def check_servers(n: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Downloads from the first n servers (the slowest are last); returns the page's figures."""
    chosen = dict(list(_SERVERS.items())[:n])
    with ThreadPoolExecutor(max_workers=len(chosen)) as pool:
        calls = {k: pool.submit(_ask, k, make, folder) for k, make in chosen.items()}
        cases = {name: call.result() for name, call in calls.items()}
    for name, (seconds, message, _) in cases.items():
        report(f"{name}: {seconds:.1f} s: {message}")
    slowest = max(seconds for seconds, _, _ in cases.values())
    kept = [name for name, (_, _, files) in cases.items() if files]
    accepted = [name for name, (_, message, _) in cases.items() if not message]
    return {
        "servers": {name: round(seconds, 2) for name, (seconds, _, _) in cases.items()},
        "refused_in_one_line": len(cases) - len(accepted),
        "bad_files_kept": len(kept),
        "slowest_s": round(slowest, 1),
        "over_60_s": sum(seconds > _SECONDS for seconds, _, _ in cases.values()),
        "problems": kept + accepted,
        "passed": not kept and not accepted and slowest <= _SECONDS,
    }


def _ask(name: str, make: Callable[[], _Behave], folder: Path) -> tuple[float, str, list[str]]:
    """(seconds, the one-line error or "", files left behind)."""
    server, target = Server(make()), folder / name / "corpus.txt"
    started, message = time.monotonic(), ""
    try:
        fetch(
            RemoteFile(
                url=f"{server.url}/corpus.txt",
                sha256=hashlib.sha256(_BODY).hexdigest(),
                min_bytes=len(_BODY),
                max_bytes=len(_BODY),
            ),
            target,
        )
    except HostError as error:
        message = str(error)
    seconds = time.monotonic() - started
    server.close()
    if "\n" in message:
        message = ""
    return seconds, message, [p.name for p in target.parent.glob("*")]


def _always(act: Callable[[socket.socket], None]) -> Callable[[], _Behave]:
    return lambda: lambda connection, path, number: act(connection)


def _reset_halfway(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(_BODY))
    connection.sendall(_BODY[:1000])
    reset(connection)


def _silence(connection: socket.socket) -> None:
    connection.settimeout(_SECONDS)
    connection.recv(1)  # until the client gives up


def _silence_halfway(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nbegin" % len(_BODY))
    _silence(connection)


def _drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(_BODY))
    for byte in _BODY:
        connection.sendall(bytes([byte]))
        time.sleep(0.5)


def _endless_body(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(_BODY)


def _endless_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X-More: of the same\r\n" * 100)


_PAGE = b"<html><title>Not found</title></html>"
_SERVERS: dict[str, Callable[[], _Behave]] = {
    "resets": _always(reset),
    "resets_halfway": _always(_reset_halfway),
    "short_body": _always(lambda c: answer(c, _BODY[:-1], Content_Length=str(len(_BODY)))),
    "endless_body": _always(_endless_body),
    "endless_headers": _always(_endless_headers),
    "one_bit_flipped": _always(lambda c: answer(c, _BODY[:-1] + bytes([_BODY[-1] ^ 1]))),
    "page_as_file": _always(lambda c: answer(c, _PAGE, Content_Type="text/html")),
    "not_found": _always(lambda c: answer(c, _PAGE, status="404 Not Found")),
    "redirects_to_itself": _always(lambda c: answer(c, status="302 Found", Location="/corpus.txt")),
    "silent": _always(_silence),
    "silent_halfway": _always(_silence_halfway),
    "drips": _always(_drip),
}
