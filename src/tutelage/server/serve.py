"""`tutelage serve`: listening, one worker beside it, and going down in seconds. Not here: the endpoints."""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Generator
from dataclasses import replace

from tutelage.errors import ConfigError
from tutelage.files import only_process_in
from tutelage.server.local_worker import LocalWorker
from tutelage.server.one_process import OneProcess
from tutelage.server.services import open_services
from tutelage.server.settings import ServerSettings
from tutelage.server.several_processes import SeveralProcesses

ALL_ADDRESSES = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where a server that listens on all of them is found from this machine."""


def serve(
    settings: ServerSettings,
    *,
    with_worker: bool = True,
    say: Callable[[str], None] = print,
    prepare: Callable[[], object] = bool,
) -> None:
    """Serve until told to stop (ctrl-C, SIGTERM). prepare: what further processes of the API are to do first.

    Raises ConfigError where the port is taken, nobody could get in or several processes cannot be, and what
    `open_services` raises.
    """
    if settings.processes > 1 and settings.is_embedded:
        raise ConfigError(
            f"--processes {settings.processes}: SQLite is for one process; give --database postgresql://…, or leave "
            "--processes out"
        )
    with contextlib.ExitStack() as stack:
        if settings.is_embedded:
            stack.enter_context(only_process_in(settings.home, "--home"))
        services = open_services(settings)
        stack.callback(services.close)
        listening = stack.enter_context(_listening(settings))
        url = _url(settings, listening)
        api = SeveralProcesses(settings, prepare, say) if settings.processes > 1 else OneProcess(services)
        worker = LocalWorker(services, _url_here(settings, listening), say) if with_worker else None
        say(f"tutelage serves {url} with everything in {settings.home.absolute()}")
        if worker is not None:
            stack.callback(worker.close)
            worker.begin_when(lambda: api.started)
        with _stopping(api, worker, say):
            api.run(listening)
        say("stopped")


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
    api: OneProcess | SeveralProcesses, worker: LocalWorker | None, say: Callable[[str], None]
) -> Generator[None, None, None]:
    """The first signal stops the worker, then the API; a second one stops at once."""
    signaled, at_once = threading.Event(), threading.Event()

    def handle(number: int, frame: object) -> None:
        if signaled.is_set():
            at_once.set()
            api.stop_at_once()
            return
        signaled.set()
        threading.Thread(target=go_down, daemon=True).start()

    def go_down() -> None:
        # The worker tells the server what becomes of its job: the server goes last.
        if worker is not None:
            worker.stop(at_once.is_set)
        say("stopping: waiting for open connections")
        api.stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
