"""`tutelage serve`: listening, one worker beside it, and going down in seconds. Not here: the endpoints."""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Generator
from dataclasses import replace

import uvicorn

from tutelage.errors import ConfigError
from tutelage.files import only_process_in
from tutelage.server.app import create_app
from tutelage.server.local_worker import LocalWorker
from tutelage.server.services import Services, open_services
from tutelage.server.settings import ServerSettings

CONNECTIONS_GRACE_SECONDS = 3
KEEP_ALIVE_SECONDS = 20
MAX_CONNECTIONS = 2000
ALL_ADDRESSES = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where a server that listens on all of them is found from this machine."""


def serve(settings: ServerSettings, *, with_worker: bool = True, say: Callable[[str], None] = print) -> None:
    """Serve until told to stop (ctrl-C, SIGTERM).

    Raises ConfigError where the port is taken or nobody could get in, and what `open_services` raises.
    """
    with contextlib.ExitStack() as stack:
        if settings.is_embedded:
            stack.enter_context(only_process_in(settings.home, "--home"))
        services = open_services(settings)
        stack.callback(services.close)
        if settings.is_embedded:  # nobody else works in this home
            services.files.remove_left_behind()
        listening = stack.enter_context(_listening(settings))
        url = _url(settings, listening)
        server = _Server(_config(services))
        worker = LocalWorker(services, _url_here(settings, listening), say) if with_worker else None
        say(f"tutelage serves {url} with everything in {settings.home.absolute()}")
        if worker is not None:
            stack.callback(worker.close)
            worker.begin_when(lambda: server.started)
        with _stopping(server, services, worker, say):
            server.run(sockets=[listening])
        say("stopped")


def _config(services: Services) -> uvicorn.Config:
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


class _Server(uvicorn.Server):
    """Leaves signals to us: its own handlers would close the server before the worker is done with it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@contextlib.contextmanager
def _listening(settings: ServerSettings) -> Generator[socket.socket, None, None]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named asyncio turns Nagle's algorithm off; without, small answers wait 40 ms to be acknowledged.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host.strip("[]"), settings.port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise ConfigError(
            f"{settings.host}:{settings.port}: cannot listen there ({error}); stop what does, or choose another --port"
        ) from error
    try:
        yield listening
    finally:
        listening.close()


def _url(settings: ServerSettings, listening: socket.socket) -> str:
    host = settings.host.strip("[]")
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{listening.getsockname()[1]}"


def _url_here(settings: ServerSettings, listening: socket.socket) -> str:
    """For the worker beside it: a loopback address, if it listens there. What the worker's jobs serve stays here then,
    and no proxy comes in between."""
    host = settings.host.strip("[]")
    return _url(replace(settings, host=ALL_ADDRESSES.get(host, host)), listening)


@contextlib.contextmanager
def _stopping(
    server: uvicorn.Server, services: Services, worker: LocalWorker | None, say: Callable[[str], None]
) -> Generator[None, None, None]:
    """The first signal stops the worker, then the server; a second one stops at once."""
    signaled = threading.Event()

    def handle(number: int, frame: object) -> None:
        if signaled.is_set():
            server.force_exit = True
            server.should_exit = True
            return
        signaled.set()
        threading.Thread(target=go_down, daemon=True).start()

    def go_down() -> None:
        # The worker tells the server what becomes of its job: the server goes last.
        if worker is not None:
            worker.stop(lambda: server.force_exit)
        say("stopping: waiting for open connections")
        services.notices.close()
        server.should_exit = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
