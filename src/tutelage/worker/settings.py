"""What a worker is told: how it is called, where it works, when it ends."""

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from tutelage.jobs.requirements import CloudType


@dataclass(frozen=True)
class LogLimits:
    """Bytes of a run's log that are kept: of its beginning, which is sent as it comes, and of its end, which is sent
    when the run ends. Together they are less than the server keeps, which drops the oldest."""

    beginning: int = 48 * 1024 * 1024
    end: int = 8 * 1024 * 1024


def _default_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tutelage" / "worker"


@dataclass(frozen=True)
class WorkerSettings:
    """once: end after one job. max_idle: end after so many seconds without one; None, never. folder: of runs and of
    models of other jobs; several workers may share it. cost_per_hour: US dollars. images: container images it stands
    for; None, any. ignore_vram: take jobs whatever memory they ask for. keep_runs: leave the folders of runs in
    `kept/`. grace: seconds between SIGTERM and SIGKILL. while_input_open: claim jobs only while standard input, which
    whoever started the worker holds, is open; the job that runs goes on to its end. job_id: the only job it takes.
    run_id: what its first run is called; unset, it chooses."""

    name: str = field(default_factory=socket.gethostname)
    once: bool = False
    max_idle: float | None = None
    folder: Path = field(default_factory=_default_folder)
    cloud_type: CloudType = CloudType.SECURE
    cost_per_hour: float = 0.0
    images: tuple[str, ...] | None = None
    ignore_vram: bool = False
    keep_runs: bool = False
    grace: float = 12.0
    while_input_open: bool = False
    job_id: str | None = None
    run_id: str | None = None
    log_limits: LogLimits = field(default_factory=LogLimits)

    def __post_init__(self) -> None:
        # Jobs run in folders of their own, from which a relative path would lead elsewhere.
        object.__setattr__(self, "folder", self.folder.expanduser().absolute())
