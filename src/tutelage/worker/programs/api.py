"""An api job: serves a model, and adapters on it, as an OpenAI-compatible server until it is stopped.

Not here: the server itself (`transformers serve`, `vllm serve`), its command (`serving.py`), the way of requests to
it (the server of jobs).
"""

import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Protocol

from tutelage.errors import JobError
from tutelage.jobs.params import ApiParams
from tutelage.worker.programs.outbox import PAUSE, Report, Unreachable
from tutelage.worker.programs.parent_death import end_with_parent
from tutelage.worker.programs.program import JobFolder, run_program
from tutelage.worker.programs.report import ClientReport
from tutelage.worker.programs.serving import WITHOUT_PROXY, ModelServer, model_server

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
START_SECONDS = 3600.0
"""How long a server may load its models."""
LAST_LINES = 20
END_SECONDS = 5.0
"""How long the server may take to end before it is killed."""


class ServerEnded(JobError):
    """The model's server ended, or never answered. The message has its last lines."""

    exit_code = 1


class ServingReport(Report, Protocol):
    """A report that can be told what is served."""

    def serve(self, port: int, models: Mapping[str, str]) -> None: ...

    @property
    def is_local(self) -> bool: ...


def serve(job: JobFolder, report: ServingReport | None = None) -> None:
    """Serve until SIGTERM. Raises ServerEnded when the server ends by itself, and what its options are refused for."""
    params = ApiParams.model_validate(dict(job.params))
    asked = ApiParams.model_validate(dict(job.asked))
    report = report or ClientReport(job.run_id)
    server = model_server(params, asked, job.path / "served")
    port = _free_port()
    host = LOOPBACK if report.is_local else EVERYWHERE
    with _running(server, host, port) as process:
        process.wait_until_it_answers(port)
        server.load_models(port)
        process.require_alive()
        _announce(report, port, server.models)
        print(f"serving {', '.join(server.models)} on port {port}", flush=True)
        try:
            process.wait()
        except KeyboardInterrupt:
            print("stopped", flush=True)
            return
        raise process.ended()


class _Process:
    """The server's process; what it prints goes to this run's log."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self._name = name
        self._process = process
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._reader = threading.Thread(target=self._read, name="server-output", daemon=True)
        self._reader.start()

    def wait(self) -> None:
        self._process.wait()

    def wait_until_it_answers(self, port: int) -> None:
        """Raises ServerEnded where it ends before, or does not answer in time."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            self.require_alive()
            try:
                with WITHOUT_PROXY.open(f"http://{LOOPBACK}:{port}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.25)
        raise ServerEnded(f"{self._name} did not answer within {START_SECONDS:g} s; {self._said()}")

    def require_alive(self) -> None:
        if self._process.poll() is not None:
            raise self.ended()

    def ended(self) -> ServerEnded:
        self._reader.join(END_SECONDS)
        return ServerEnded(f"{self._name} ended with exit code {self._process.returncode}; {self._said()}")

    def stop(self) -> None:
        """SIGTERM, then SIGKILL: whichever ends it."""
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _said(self) -> str:
        return "it said:\n" + "".join(self._last) if self._last else "it said nothing"

    def _read(self) -> None:
        output: IO[str] | None = self._process.stdout
        assert output is not None
        for line in output:
            self._last.append(line)
            sys.stdout.write(line)
            sys.stdout.flush()


@contextmanager
def _running(server: ModelServer, host: str, port: int) -> Iterator[_Process]:
    """The server's process for as long as this lasts; it dies with this one, however this one ends."""
    command = server.command(host, port)
    process = _Process(
        server.name,
        subprocess.Popen(
            command,
            cwd=server.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=end_with_parent,
        ),
    )
    try:
        yield process
    finally:
        process.stop()


def _announce(report: ServingReport, port: int, models: Mapping[str, str]) -> None:
    while True:
        try:
            report.serve(port, models)
        except Unreachable:
            time.sleep(PAUSE)
        else:
            return


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    run_program(serve)
