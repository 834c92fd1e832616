"""`tutelage serve`: listening, one worker beside it, and going down in seconds. Not here: the endpoints."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator

import uvicorn

from tutelage.errors import ConfigError
from tutelage.files import only_process_in
from tutelage.jobs.records import Scope
from tutelage.server.app import create_app
from tutelage.server.services import Services, open_services
from tutelage.server.settings import ServerSettings

WORKER_GRACE_SECONDS = 20.0
"""How long the worker may take to give its job back."""
CONNECTIONS_GRACE_SECONDS = 3
KEEP_ALIVE_SECONDS = 20
MAX_CONNECTIONS = 2000


def serve(settings: ServerSettings, *, with_worker: bool = True, say: Callable[[str], None] = print) -> int:
    """Serve until told to stop (ctrl-C, SIGTERM); the exit code.

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
        worker = _LocalWorker(services, url, say) if with_worker else None
        say(f"tutelage serves {url} with everything in {settings.home.absolute()}")
        if worker is not None:
            stack.callback(worker.close)
            threading.Thread(target=worker.start_when, args=(lambda: server.started,), daemon=True).start()
        with _stopping(server, services, worker, say):
            server.run(sockets=[listening])
        say("stopped")
    return 0


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
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listening.getsockname()[1]}"


@contextlib.contextmanager
def _stopping(
    server: uvicorn.Server, services: Services, worker: "_LocalWorker | None", say: Callable[[str], None]
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


class _LocalWorker:
    """The worker beside the server, a process of its own, with a token that is revoked when it ends."""

    def __init__(self, services: Services, url: str, say: Callable[[str], None]) -> None:
        self._services = services
        self._url = url
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._token: str | None = None
        self._closing = False

    def start_when(self, is_ready: Callable[[], bool]) -> None:
        """Wait for the server, then run the worker, and another one whenever it is lost."""
        while not is_ready():
            time.sleep(0.02)
        while not self._closing:
            began = time.monotonic()
            self._process = self._begin()
            code = self._process.wait()
            if self._closing:
                return
            self._say(f"the worker ended with exit code {code}; another one begins")
            time.sleep(max(0.0, 5.0 - (time.monotonic() - began)))

    def stop(self, at_once: Callable[[], bool]) -> None:
        """Let the worker give its job back and end."""
        self._closing = True
        process = self._process
        if process is None or process.poll() is not None:
            return
        self._say("stopping: waiting for the worker to stop its job and give it back")
        process.send_signal(signal.SIGTERM)
        until = time.monotonic() + WORKER_GRACE_SECONDS
        while process.poll() is None and time.monotonic() < until and not at_once():
            time.sleep(0.05)
        if process.poll() is None:
            self._say("stopping: the worker does not end, it is killed; its job waits for another one")
            process.kill()
            process.wait()

    def close(self) -> None:
        """Nothing is left of it."""
        self._closing = True
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._token is not None:
            self._services.access.revoke_token(self._services.organization, self._token)

    def _begin(self) -> "subprocess.Popen[bytes]":
        if self._token is not None:
            self._services.access.revoke_token(self._services.organization, self._token)
        new = self._services.access.create_token(
            self._services.organization, "worker of serve", [Scope.WORKER, Scope.READ]
        )
        self._token = new.token.id
        home = self._services.settings.home
        command = [sys.executable, "-m", "tutelage", "worker", "--name", "local", "--folder", str(home / "worker")]
        # With this server gone its job goes on, and its place is taken by the worker of the next one.
        command += ["--ignore-vram", "--while-input-open"]
        environment = {**os.environ, "TUTELAGE_URL": self._url, "TUTELAGE_API_KEY": new.secret}
        if self._services.settings.is_embedded:  # its lease sleeps when the server does
            environment["TUTELAGE_SERVER_HERE"] = "1"
        with (home / "worker.log").open("ab") as output:
            # A group of its own: ctrl-C is for the server, which stops it in order.
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )
