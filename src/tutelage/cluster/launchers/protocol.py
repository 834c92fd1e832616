"""What a launcher can do, and what it says. Not here: when it is told to."""

from dataclasses import dataclass
from typing import Protocol

from tutelage.cluster.records import Group, Start, Tier
from tutelage.errors import TutelageError
from tutelage.jobs.requirements import CloudType

GONE_SECONDS = 30.0
"""A worker for one job that does not get it within this time ends: the job was canceled, or somebody else has it."""


class LauncherError(TutelageError):
    """The launcher did not answer, or not as it should; it is asked again later."""


class NoCapacityError(LauncherError):
    """A machine of this tier cannot be had now, sold out or refused, and none was made: it rests."""


@dataclass(frozen=True)
class Order:
    """A machine that is to be started.

    machine_id: what it is called at the launcher, and its worker at the server. url, token: of the server, for its
    worker. run_id: that it claims `start.job_id` with, where it takes one job only. ignore_vram: of its hardware.
    """

    machine_id: str
    start: Start
    url: str
    token: str
    run_id: str | None = None
    ignore_vram: bool = False


@dataclass(frozen=True)
class Found:
    """A machine as the launcher knows it. ended: why it is none any more, where it ended by itself. is_queued: the
    launcher keeps the order until there is room for it; how long that takes says nothing of the machine."""

    machine_id: str
    group: Group
    tier: Tier
    cost_per_hour: float
    started_at: float
    job_id: str | None = None
    ended: str | None = None
    is_queued: bool = False


class Launcher(Protocol):
    """Machines of one cluster, found by its name: also those that a manager before started."""

    one_job: bool
    """Whether a machine takes the job it was started for, and no other."""

    def found(self) -> list[Found]:
        """All machines that were started and not stopped. Raises LauncherError."""
        ...

    def start(self, order: Order) -> None:
        """Ask for a machine. Raises NoCapacityError, LauncherError."""
        ...

    def stop(self, machine_id: str) -> None:
        """Give a machine back; one that is gone already is no error. Raises LauncherError."""
        ...

    def close(self) -> None:
        """The manager ends; machines stay."""
        ...


def worker_command(order: Order, cloud_type: CloudType | None = None, image: str | None = None) -> list[str]:
    """Options of `tutelage worker` on the machine. cloud_type: that it has; unset, that of its tier. image: that it
    runs; unset, that of its group, and with neither the worker takes jobs of any image."""
    start = order.start
    image = image or start.group.image
    command = ["--name", order.machine_id, "--cloud-type", (cloud_type or start.tier.cloud_type).value]
    command += ["--cost-per-hour", f"{start.cost_per_hour:g}"]
    if image is not None:
        command += ["--image", image]
    if order.ignore_vram:
        command += ["--ignore-vram"]
    if order.run_id is not None:
        command += ["--job", start.job_id, "--run", order.run_id, "--once"]
        command += ["--max-idle", f"{GONE_SECONDS:g}"]
    return command
