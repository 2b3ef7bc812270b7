"""A web server on this machine that misbehaves as a test says."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable


class Server:
    """A loopback server that treats each connection as a function says.

    `behave(connection, path, number)` is called with the request's path and the
    connection's number, from 0; it may wait on `ended`, which the test's end sets.
    """

    def __init__(self, behave: Callable[[socket.socket, str, int], None]) -> None:
        self.ended = threading.Event()
        self.connections = 0
        self._behave = behave
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def _accept(self) -> None:
        while not self.ended.is_set():
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
            self._behave(connection, request.split(b" ")[1].decode(), number)

    def close(self) -> None:
        self.ended.set()
        for thread in self._threads:
            thread.join()
        self._socket.close()


def answer(
    connection: socket.socket, body: bytes = b"", status: str = "200 OK", **headers: str
) -> None:
    """Sends one HTTP answer; its length is announced unless a header says otherwise."""
    fields = {"Content_Length": str(len(body)), **headers}
    lines = [f"HTTP/1.1 {status}", *(f"{k.replace('_', '-')}: {v}" for k, v in fields.items() if v)]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)


def reset(connection: socket.socket) -> None:
    """Has the connection end with a reset instead of an orderly close."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
