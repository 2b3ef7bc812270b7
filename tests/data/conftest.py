from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from .loopback import Call, Server
from .shelf import Shelf


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setenv("no_proxy", "*")
    servers: list[Server] = []

    def start(behave: Callable[[Call], object]) -> Server:
        servers.append(Server(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Shelf:
    return Shelf(tmp_path, monkeypatch)
