"""What a plan is made from and what it says: jobs that wait, machines, limits, actions. Not here: the plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from tutelage.jobs.requirements import CloudType, Requirement


@dataclass(frozen=True)
class PendingJob:
    """A job that nobody has claimed. waiting_since: seconds since the epoch."""

    id: str
    requirement: Requirement
    waiting_since: float


class Group(NamedTuple):
    """Jobs that the same machines can run, and that get machines of their own.

    hardware: those of the catalogue that all of them may run on, in its order. image: None, the default one.
    """

    cloud_type: CloudType
    image: str | None
    hardware: tuple[str, ...]

    def __str__(self) -> str:
        image = f" with {self.image}" if self.image is not None else ""
        return f"{self.cloud_type} {' or '.join(self.hardware) or 'no hardware'}{image}"


class Tier(NamedTuple):
    """What is rented at a price, and may be sold out: hardware on secure or on community machines."""

    hardware: str
    cloud_type: CloudType

    def __str__(self) -> str:
        return f"{self.hardware} {self.cloud_type}"


class MachineState(str, Enum):
    """Of a machine that the launcher knows."""

    STARTING = "starting"
    """Asked for; its worker has not been heard from."""
    IDLE = "idle"
    BUSY = "busy"
    LEAVING = "leaving"
    """Claims nothing more; it ends when its job has."""
    LOST = "lost"
    """Ended, or gone, by itself: what is left of it is to be cleaned up."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Machine:
    """A machine with one worker.

    group: whose jobs it was started for. since: when it came into its state. last_seen: when its worker was last heard
    from; None, never. job_id: of a machine that takes this job and no other. reason: why it is lost.
    """

    id: str
    group: Group
    tier: Tier
    state: MachineState
    since: float
    last_seen: float | None = None
    cost_per_hour: float = 0.0
    job_id: str | None = None
    reason: str | None = None


class Failures(NamedTuple):
    """Starts of a tier that failed one after the other, up to now."""

    times: int
    last_at: float


@dataclass(frozen=True)
class Machines:
    """All there are, those that are starting or ending among them; and what was learned from those before.

    failures: by tier; one that started well since has none. spent: US dollars, by all machines up to now.
    """

    known: tuple[Machine, ...] = ()
    failures: Mapping[Tier, Failures] = field(default_factory=dict[Tier, Failures])
    spent: float = 0.0


@dataclass(frozen=True)
class Hardware:
    """A line of the catalogue: what can be started.

    name: as in `allowed_hardware`. prices: US dollars an hour, by cloud type; what has none cannot be had. most: how
    many at once. ignore_vram: its workers take jobs whatever memory they ask for. known_as: what its workers call it,
    where they have another name for it; that is what jobs are held to.
    """

    name: str
    prices: Mapping[CloudType, float]
    vram_gb: float = 0.0
    most: int | None = None
    ignore_vram: bool = False
    known_as: str | None = None


LADDER_SECONDS = (30.0, 60.0, 120.0, 300.0, 900.0, 1800.0)


@dataclass(frozen=True)
class Limits:
    """What a plan keeps to.

    max_workers: machines at once, those that start or end among them. max_per_group: of them for one group.
    max_cost_per_hour: of all machines, US dollars. max_cost: of everything that was ever spent; beyond it nothing
    starts, and machines leave when they have done their job. idle_seconds: how long a machine without a job is kept.
    start_seconds: how long one may take to start. silent_seconds: after which one that is not heard from is replaced.
    ladder: how long a tier rests after its first failed start, its second, and so on. one_job: a machine takes one job,
    for which it was started.
    """

    hardware: tuple[Hardware, ...]
    max_workers: int
    max_per_group: int | None = None
    max_cost_per_hour: float | None = None
    max_cost: float | None = None
    idle_seconds: float = 300.0
    start_seconds: float = 900.0
    silent_seconds: float = 120.0
    ladder: tuple[float, ...] = LADDER_SECONDS
    one_job: bool = False


class Start(NamedTuple):
    """Start a machine. job_id: that waits for it."""

    group: Group
    tier: Tier
    cost_per_hour: float
    job_id: str


class Drain(NamedTuple):
    """Let a machine finish its job and claim nothing more."""

    machine_id: str
    reason: str


class Stop(NamedTuple):
    """Stop a machine and give it back. failed_start: it counts as one."""

    machine_id: str
    reason: str
    failed_start: bool = False


class Hold(NamedTuple):
    """Jobs of a group wait though no machine is on its way to them; why."""

    group: Group
    jobs: int
    reason: str


Action = Start | Drain | Stop | Hold
