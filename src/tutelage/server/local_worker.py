"""The worker beside `serve`: started, started again when it is lost, stopped first. Not here: what a worker does."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tutelage.errors import TutelageError
from tutelage.jobs.access import OF_SERVER
from tutelage.jobs.records import Scope, Token
from tutelage.server.services import Services
from tutelage.server.settings import KEY_VARIABLE, ServerSettings

WORKER_GRACE_SECONDS = 20.0
"""How long the worker may take to give its job back."""
BEGIN_AGAIN_SECONDS = 5.0
"""Between two starts, however soon the first one ended."""
LOOK_EVERY_SECONDS = 1.0
LOOK_FOR_TOKENS_SECONDS = 300.0
JOIN_SECONDS = 5.0
FORGOTTEN_SECONDS = 300.0
"""The worker of a server that was killed finishes its job with its own token; one unused for this long is revoked."""
MAX_LOG_BYTES = 8 * 1024 * 1024
"""Of worker.log; what was before is worker.log.1."""
OF_THE_SERVER = frozenset({KEY_VARIABLE, "TUTELAGE_DATABASE", "TUTELAGE_FILES"})
OF_THE_DATABASE = ("PGDATABASE", "PGHOST", "PGPASS", "PGSERVICE", "PGSSL", "PGUSER")
"""How names of variables begin by which PostgreSQL's library finds the records and gets in."""
OF_THE_STORE = ("AWS_", "AZURE_", "FSSPEC_", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_")
"""How names of variables begin that let into a store of files."""


class LocalWorker:
    """A process of its own, with a token that is revoked when it ends. url: of the server, as it sees it."""

    def __init__(self, services: Services, url: str, say: Callable[[str], None]) -> None:
        self._services = services
        self._url = url
        self._say = say
        self._name = f"{OF_SERVER} {socket.gethostname()} {url}"
        self._process: subprocess.Popen[bytes] | None = None
        self._token: str | None = None
        self._lock = threading.Lock()  # no process begins once `_closing` is set
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._before: list[Token] = []

    def begin_when(self, is_ready: Callable[[], bool]) -> None:
        """Wait for the server, then run the worker, and another one whenever it is lost; in a thread."""
        self._thread = threading.Thread(target=self._keep, args=(is_ready,), name="worker", daemon=True)
        self._thread.start()

    def stop(self, at_once: Callable[[], bool]) -> None:
        """Let the worker give its job back and end. at_once: whether there is no time for that any more."""
        process = self._closed()
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
        process = self._closed()
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)
        self._revoke(self._token)

    def _closed(self) -> "subprocess.Popen[bytes] | None":
        with self._lock:
            self._closing.set()
            return self._process

    def _keep(self, is_ready: Callable[[], bool]) -> None:
        while not is_ready():
            if self._closing.wait(0.02):
                return
        with contextlib.suppress(TutelageError):
            self._before = self._left_behind()
        while not self._closing.is_set():
            began = time.monotonic()
            try:
                process = self._begin()
            except (TutelageError, OSError) as error:
                self._say(f"the worker cannot be started ({error}); it is tried again in {BEGIN_AGAIN_SECONDS:g} s")
            else:
                if process is None or self._ended(process):
                    return
            self._closing.wait(max(0.0, BEGIN_AGAIN_SECONDS - (time.monotonic() - began)))

    def _ended(self, process: "subprocess.Popen[bytes]") -> bool:
        """When the process is gone: whether no other is to begin."""
        looked = time.monotonic()
        while process.poll() is None:
            if self._closing.wait(LOOK_EVERY_SECONDS):
                return True
            with contextlib.suppress(OSError):  # a log that is too long is no reason to end
                shorten(self._log)
            if self._before and time.monotonic() - looked > LOOK_FOR_TOKENS_SECONDS:
                looked = time.monotonic()
                self._forget_others()
        if self._closing.is_set():
            return True
        if process.returncode == 0:
            self._revoke(self._token)
            self._say(f"the worker was stopped, no other begins until this server is started again; see {self._log}")
            return True
        self._say(f"the worker ended with exit code {process.returncode}; another one begins")
        return False

    def _begin(self) -> "subprocess.Popen[bytes] | None":
        """The new process; None where the server is about to stop. Raises OSError and StorageError."""
        self._revoke(self._token)
        services = self._services
        new = services.access.create_token(
            services.organization, self._name, [Scope.WORKER, Scope.READ], of_server=True
        )
        self._token = new.token.id
        home = services.settings.home
        command = [sys.executable, "-m", "tutelage", "worker", "--name", "local", "--folder", str(home / "worker")]
        # With this server gone its job goes on, and its place is taken by the worker of the next one.
        command += ["--ignore-vram", "--while-input-open"]
        environment = environment_of_worker(os.environ, services.settings)
        environment |= {"TUTELAGE_URL": self._url, "TUTELAGE_API_KEY": new.secret}
        shorten(self._log)
        with self._lock, self._log.open("ab") as output:
            if self._closing.is_set():
                return None
            # A group of its own: ctrl-C is for the server, which stops it in order.
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )
            return self._process

    @property
    def _log(self) -> Path:
        return self._services.settings.home / "worker.log"

    def _left_behind(self) -> list[Token]:
        """Tokens of workers whose servers were killed. Others may share the records: theirs are of other addresses."""
        begin = OF_SERVER if self._services.settings.is_embedded else self._name
        tokens = self._services.access.tokens(self._services.organization)
        return [token for token in tokens if token.revoked_at is None and token.name.startswith(begin)]

    def _forget_others(self) -> None:
        with contextlib.suppress(TutelageError):
            theirs = {token.id for token in self._before}
            self._before = [token for token in self._left_behind() if token.id in theirs]
            for token in self._before:
                used = token.last_used_at or token.created_at
                if time.time() - used.timestamp() > FORGOTTEN_SECONDS:
                    self._revoke(token.id)

    def _revoke(self, token: str | None) -> None:
        if token is not None:
            with contextlib.suppress(TutelageError):  # the next server sees to it
                self._services.access.revoke_token(self._services.organization, token)


def environment_of_worker(environment: Mapping[str, str], settings: ServerSettings) -> dict[str, str]:
    """The server's variables without those that let into its records and files: they are not for jobs."""
    private = (() if settings.is_embedded else OF_THE_DATABASE) + (() if settings.keeps_files_here else OF_THE_STORE)
    found = {
        name: value for name, value in environment.items() if name not in OF_THE_SERVER and not name.startswith(private)
    }
    if settings.is_embedded:
        found["TUTELAGE_SERVER_HERE"] = "1"  # its lease sleeps when the server does
    return found


def shorten(log: Path) -> None:
    """Begin a log anew that is too long; who has it open to append goes on in it. Raises OSError."""
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        with log.open("r+b") as file:
            file.seek(-MAX_LOG_BYTES, os.SEEK_END)
            log.with_name(f"{log.name}.1").write_bytes(file.read())
            file.truncate(0)
