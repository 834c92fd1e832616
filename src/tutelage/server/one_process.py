"""The API in this process: uvicorn as it is configured here, and its end. Not here: listening (`serve`)."""

import contextlib
import socket
from collections.abc import Generator

import uvicorn

from tutelage.server.app import create_app
from tutelage.server.services import Services

CONNECTIONS_GRACE_SECONDS = 3
KEEP_ALIVE_SECONDS = 20
MAX_CONNECTIONS = 2000


class Server(uvicorn.Server):
    """Leaves signals to us: its own handlers would close the server before the worker is done with it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def config_of(services: Services) -> uvicorn.Config:
    """How the application of these services is served."""
    return uvicorn.Config(
        create_app(services),
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CONNECTIONS_GRACE_SECONDS,
        limit_concurrency=MAX_CONNECTIONS,
        # Who comes through a proxy is to be seen as that: see `authentication`.
        proxy_headers=False,
        server_header=False,
    )


class OneProcess:
    """This one. `stop` and `stop_at_once` are for other threads and for handlers of signals."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._server = Server(config_of(services))

    @property
    def started(self) -> bool:
        """Whether requests are answered."""
        return self._server.started

    def run(self, listening: socket.socket) -> None:
        """Until it is stopped."""
        self._server.run(sockets=[listening])

    def stop(self) -> None:
        """Let open connections end, for some seconds."""
        self._services.notices.close()
        self._server.should_exit = True

    def stop_at_once(self) -> None:
        """Wait for nobody."""
        self._server.force_exit = True
        self._server.should_exit = True
