"""A real Ray on this machine: a head and nodes with labels, each a group of processes that can be killed."""

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.served import until

HEAD = "127.0.0.4"
"""Ray tells nodes apart by their addresses; of the loopback ones this is one of many."""
START_PATIENCE = 90.0
MEMORY = ("--object-store-memory=80000000", "--min-worker-port=0", "--max-worker-port=0")
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    # A node whose head is gone ends soon, as it does after a minute otherwise.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "3",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "1000",
}


@dataclass
class RayNodes:
    """folder: of Ray's own files; its path has to be short. ports: of head and dashboard."""

    folder: Path
    port: int
    dashboard_port: int
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start_head(self) -> None:
        """With no room for jobs."""
        head = ["--head", f"--port={self.port}", f"--dashboard-port={self.dashboard_port}", "--num-cpus=0"]
        self._start("head", [*head, f"--node-ip-address={HEAD}", f"--temp-dir={self.folder}"])
        until(lambda: self._alive() is not None, "the dashboard", START_PATIENCE)

    def start_node(self, name: str, address: str, cpus: int = 2, **labels: str) -> None:
        """A node with these labels, when the head has it."""
        given = ",".join(f"{key}={value}" for key, value in labels.items())
        options = [f"--address={HEAD}:{self.port}", f"--node-ip-address={address}", f"--num-cpus={cpus}"]
        self._start(name, [*options, f"--labels={given}"])
        until(lambda: address in (self._alive() or []), f"node {name}", START_PATIENCE)

    def kill(self, *names: str) -> None:
        """All their processes at once, those of their jobs too, as when machines are lost.

        First all are listed: a node whose head is gone ends by itself, and its jobs would be nobody's children then.
        """
        ended = [self.processes.pop(name) for name in names]
        there: list[psutil.Process] = []
        for process in ended:
            with suppress(psutil.NoSuchProcess):
                first = psutil.Process(process.pid)
                there += [first, *first.children(recursive=True)]
        for one in there:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(there, 10)
        for process in ended:
            process.wait()

    def close(self) -> None:
        self.kill(*self.processes)

    def output(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start(self, name: str, options: list[str]) -> None:
        ray = Path(sys.executable).with_name("ray")
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [str(ray), "start", "--block", *options, *MEMORY],
                env=os.environ | SETTINGS,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _alive(self) -> list[str] | None:
        """Addresses of nodes; None where the dashboard does not answer."""
        for name, process in self.processes.items():
            assert process.poll() is None, self.output(name)
        try:
            answer: Any = httpx.get(f"{self.address}/nodes?view=summary", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return None
        nodes = [node["raylet"] for node in (answer.get("data") or {}).get("summary", [])]
        return [node["nodeManagerAddress"] for node in nodes if node.get("state") == "ALIVE"]
