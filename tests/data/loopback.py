"""A web server on this machine that misbehaves as a test says."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import NamedTuple


class Call(NamedTuple):
    """A connection to a `Server`.

    Attributes:
      connection: the socket.
      path: what is asked for.
      number: of the connection, from 0.
      ended: is set where the server ends, which no call may outlive.
    """

    connection: socket.socket
    path: str
    number: int
    ended: threading.Event

    def answer(self, body: bytes = b"", status: str = "200 OK", **headers: str) -> None:
        """Sends one HTTP answer; its length is announced unless a header says otherwise."""
        fields = {"Content_Length": str(len(body)), **headers}
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items() if value]
        head = "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""])
        self.connection.sendall(head.encode() + body)

    def send_slowly(self, data: bytes) -> None:
        """Sends a byte now and then."""
        for byte in data:
            self.connection.sendall(bytes([byte]))
            if self.ended.wait(0.02):
                return

    def send_for_ever(self, data: bytes) -> None:
        """Sends the same again and again."""
        while not self.ended.is_set():
            self.connection.sendall(data)

    def reset(self) -> None:
        """Has the connection end with a reset instead of an orderly close."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


class Server:
    """A loopback server that treats each connection as a function says."""

    def __init__(self, behave: Callable[[Call], object]) -> None:
        self.connections = 0
        self._behave, self._ended = behave, threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def _accept(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._socket.accept()
                number, self.connections = self.connections, self.connections + 1
                self._threads.append(
                    threading.Thread(target=self._serve, args=(connection, number))
                )
                self._threads[-1].start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            request = b""
            while b"\r\n\r\n" not in request and (more := connection.recv(4096)):
                request += more
            self._behave(Call(connection, request.split(b" ")[1].decode(), number, self._ended))

    def close(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._socket.close()


BODY = bytes(range(256)) * 1000
_LENGTH = str(len(BODY))


def _reset_halfway(call: Call) -> None:
    call.answer(BODY[:100], Content_Length=_LENGTH)
    call.reset()


def _send_for_ever(call: Call) -> None:
    call.answer(Content_Length="")
    call.send_for_ever(BODY)


def _send_headers_for_ever(call: Call) -> None:
    call.connection.sendall(b"HTTP/1.1 200 OK\r\n")
    call.send_for_ever(b"X-More: of the same\r\n" * 100)


def _stall_halfway(call: Call) -> None:
    call.answer(BODY[:100], Content_Length=_LENGTH)
    call.ended.wait(60)


def _trickle(call: Call) -> None:
    call.answer(Content_Length=_LENGTH)
    call.send_slowly(BODY)


def _redirect(to: str) -> Callable[[Call], None]:
    return lambda call: call.answer(status="302 Found", Location=to.format(path=call.path))


# Servers that do not send the file BODY; those that let a client wait are the last.
MISBEHAVIOURS: dict[str, Callable[[Call], object]] = {
    "resets": Call.reset,
    "resets_halfway": _reset_halfway,
    "breaks_off": lambda call: call.answer(BODY[:-1], Content_Length=_LENGTH),
    "breaks_off_a_chunk": lambda call: call.answer(
        b"ff\r\nabc", Content_Length="", Transfer_Encoding="chunked"
    ),
    "talks_nonsense": lambda call: call.connection.sendall(b"\0\1 nonsense\r\n\r\n"),
    "says_nothing": lambda call: None,
    "fails": lambda call: call.answer(b"oops", "500 Oops"),
    "misses": lambda call: call.answer(b"no", "404 Not Found"),
    "sends_other_bytes": lambda call: call.answer(BODY[::-1]),
    "announces_too_much": lambda call: call.answer(BODY, Content_Length=str(10**12)),
    "sends_for_ever": _send_for_ever,
    "sends_headers_for_ever": _send_headers_for_ever,
    "redirects_to_itself": _redirect("{path}"),
    "redirects_on_and_on": _redirect("{path}x"),
    "redirects_to_plain_http": _redirect("http://example.org/file"),
    "redirects_to_a_file": _redirect("file:///etc/hostname"),
    "redirects_nowhere": _redirect("http://127.0.0.1:port/"),
    "stalls": lambda call: call.ended.wait(60),
    "stalls_halfway": _stall_halfway,
    "trickles_headers": lambda call: call.send_slowly(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500),
    "trickles": _trickle,
}
