"""The server: models loaded and warmed up, then HTTP until a signal ends it."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from charjax.errors import HostError, InputError
from charjax.inference.load import TrainedModel
from charjax.runtime.display import counted
from charjax.runtime.signals import StopSignals
from charjax.serve.engine import Engine
from charjax.serve.limits import RequestLimits
from charjax.serve.models import ServedModel

if TYPE_CHECKING:
    from starlette.applications import Starlette

_logger = logging.getLogger(__name__)

STOP_SECONDS = 10  # for the answers that are being written when the server is asked to stop


def serve_model(name: str, trained: TrainedModel, limits: RequestLimits) -> ServedModel:
    """A model with its engine, compiled for the requests to come."""
    engine = Engine(trained, limits.max_queue)
    engine.warm_up()
    how = (
        "requests run in one batch"
        if engine.is_shared
        else "requests take turns: the C kernels do not run it, and texts would depend on the batch"
    )
    _logger.info("%s: %s; %s", name, trained.config.model.summary, how)
    return ServedModel(name, trained, engine, int(time.time()))


def run_server(app: Starlette, listener: socket.socket) -> None:
    """Serves an application until SIGINT or SIGTERM; answers then have `STOP_SECONDS` to end.

    Args:
      app: the application.
      listener: a socket that listens.
    """
    stop = StopSignals()

    class Server(uvicorn.Server):
        """Ends by the signals that `StopSignals` receives."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def on_tick(self, counter: int) -> bool:
            return await super().on_tick(counter) or stop.received is not None

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if answers := len(self.server_state.tasks):
                number = counted(answers, "answer")
                last = "a second Ctrl-C ends the server at once"
                _logger.info("%s may take %d more seconds; %s", number, STOP_SECONDS, last)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    with stop:
        Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
      InputError: there is no such port, or the name of the host is malformed.
      HostError: the address cannot be used.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"--port={port}: must be from 0 to {2**16 - 1}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except UnicodeError:  # of the encoding of names: an empty label, or one of 64 characters
        raise InputError(f"--host={host}: must be an IP address or the name of a host") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise HostError(f"--host={host} --port={port}: {reason}; give another one") from error
