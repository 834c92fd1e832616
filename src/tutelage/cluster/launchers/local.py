"""Workers as processes of this machine, for one machine with several GPUs' worth of jobs, and to try a cluster out.

With the manager gone they end after their job: they read its end from their standard input. Not here: the worker.
"""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from tutelage.cluster.launchers.protocol import Found, LauncherError, Order, worker_command

GRACE_SECONDS = 20.0
"""How long a worker may take to give its job back."""


class LocalLauncher:
    """folder: of logs, and of the runs of each worker."""

    one_job = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[Found, subprocess.Popen[bytes]]] = {}

    def found(self) -> list[Found]:
        """Those of this process; see `Launcher`."""
        return [_as_it_is(found, process) for found, process in self._known.values()]

    def start(self, order: Order) -> None:
        """See `Launcher`."""
        start, own = order.start, self._folder / order.machine_id
        command = [sys.executable, "-m", "tutelage", "worker", *worker_command(order)]
        command += ["--folder", str(own), "--while-input-open"]
        environment = os.environ | {"TUTELAGE_URL": order.url, "TUTELAGE_API_KEY": order.token}
        try:
            own.mkdir(parents=True, exist_ok=True)
            with (own / "worker.log").open("ab") as log:
                process = subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
                )
        except OSError as error:
            raise LauncherError(
                f"{own}: no worker can be started there ({error.strerror}); look at the folder"
            ) from error
        found = Found(order.machine_id, start.group, start.tier, start.cost_per_hour, time.time(), start.job_id)
        self._known[order.machine_id] = (found, process)

    def stop(self, machine_id: str) -> None:
        """See `Launcher`. What it runs is stopped and given back; a worker that does not end is killed."""
        known = self._known.pop(machine_id, None)
        if known is None:
            return
        process = known[1]
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def close(self) -> None:
        """Let all of them end after their jobs."""
        for _, process in self._known.values():
            if process.stdin is not None:
                process.stdin.close()


def _as_it_is(found: Found, process: subprocess.Popen[bytes]) -> Found:
    code = process.poll()
    if code is None:
        return found
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return replace(found, ended=f"its process has ended with {how}")
