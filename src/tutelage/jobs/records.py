"""What is kept about jobs, runs, workers, events and files, as it goes over HTTP too. Not here: SQL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from typing import Any

from tutelage.jobs.identity import job_id
from tutelage.jobs.requirements import CloudType, Requirement
from tutelage.jobs.status import JobStatus


def moment(seconds: float | None) -> datetime | None:
    """Seconds since the epoch as a time in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)


@dataclass(frozen=True)
class Submission:
    """A job as it was checked, before it has a record.

    params: validated, all defaults filled in. mounted_files: path in the job's folder to file id. entrypoint: shell
    commands, for kinds that are defined by whoever submits; None where the worker knows what to run.
    """

    kind: str
    prefix: str
    params: Mapping[str, Any]
    requirement: Requirement
    model: str | None = None
    mounted_files: Mapping[str, str] = field(default_factory=dict[str, str])
    entrypoint: str | None = None
    suffix: str | None = None
    timeout_at: float | None = None

    def id(self, organization: str) -> str:
        """What its job is called. What a custom job runs is its work as much as its params are."""
        custom = {"params": self.params, "entrypoint": self.entrypoint}
        return job_id(
            self.prefix,
            kind=self.kind,
            params=self.params if self.entrypoint is None else custom,
            mounted_files=self.mounted_files,
            image=self.requirement.image or "",
            organization=organization,
            suffix=self.suffix,
        )


@dataclass(frozen=True)
class Job:
    """A job. run_id: who has it now. worker_id: who has it, or had it last. reason: why it failed, was canceled or
    waits again."""

    id: str
    kind: str
    status: JobStatus
    model: str | None
    params: dict[str, Any]
    mounted_files: dict[str, str]
    image: str | None
    entrypoint: str | None
    requires_vram_gb: float
    allowed_hardware: list[str] | None
    cloud_type: CloudType
    organization_id: str
    run_id: str | None
    worker_id: str | None
    attempts: int
    max_attempts: int
    reason: str | None
    outputs: dict[str, Any] | None
    submitted_by: str | None
    timeout: datetime | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True)
class Run:
    """One attempt at a job by one worker. Its id is the fencing token: only while it is in progress may it write."""

    id: str
    job_id: str
    worker_id: str | None
    attempt: int
    status: JobStatus
    reason: str | None
    exit_code: int | None
    created_at: datetime
    finished_at: datetime | None
    log_bytes: int
    latest: dict[str, Any]


@dataclass(frozen=True)
class Event:
    """What a run reported at one moment. id grows in the order in which events were taken in."""

    id: int
    run_id: str
    created_at: datetime
    data: dict[str, Any]
    file: str | None = None


@dataclass(frozen=True)
class StoredFile:
    """A file. Its id follows from purpose, bytes and organisation."""

    id: str
    purpose: str
    filename: str
    bytes: int
    created_at: datetime


@dataclass(frozen=True)
class Worker:
    """A worker, and when it was last heard from. cost_per_hour: US dollars."""

    id: str
    name: str
    status: str
    hardware: str
    gpus: int
    vram_gb: float
    cloud_type: CloudType
    images: list[str] | None
    cached_models: list[str]
    disk_free_gb: float | None
    cost_per_hour: float
    version: str
    run_id: str | None
    reason: str | None
    registered_at: datetime
    last_seen_at: datetime
    stopped_at: datetime | None


@dataclass(frozen=True)
class WorkerFit:
    """Whether a worker may run a job. reasons: the conditions that fail."""

    worker_id: str
    name: str
    fits: bool
    reasons: list[str]
    busy_with: str | None


@dataclass(frozen=True)
class Explanation:
    """Why a job is where it is. ahead: pending jobs that are before it in the queue."""

    job_id: str
    status: JobStatus
    summary: str
    ahead: int
    workers: Sequence[WorkerFit]


@dataclass(frozen=True)
class WaitingJob:
    """requirement: key of its conditions in `Demand.requirements`. queued_at: seconds since the epoch."""

    id: str
    requirement: str
    queued_at: float


@dataclass(frozen=True)
class Demand:
    """Jobs, oldest first, and the conditions they share, as `Requirement.from_json` reads them."""

    requirements: dict[str, dict[str, Any]]
    jobs: list[WaitingJob]


@dataclass(frozen=True)
class Cost:
    """What the runs of a job took. dollars: hours times the worker's price."""

    job_id: str
    kind: str
    runs: int
    hours: float
    dollars: float


@dataclass(frozen=True)
class Series:
    """Points of one field over steps. tag: of the events that hold it."""

    tag: str
    field: str
    steps: list[float]
    values: list[float]


class Scope(str, Enum):
    """What a token may be used for. None includes another, but `admin` includes all."""

    READ = "read"
    SUBMIT = "submit"
    WORKER = "worker"
    ADMIN = "admin"


@dataclass(frozen=True)
class Token:
    """A token as it can be shown: the secret itself is only hashed here."""

    id: str
    name: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True)
class Claim:
    """What a worker may run now. lease_seconds: within these the lease has to be renewed, counted from when it was
    asked for."""

    job: Job
    run_id: str
    attempt: int
    lease_seconds: float


@dataclass(frozen=True)
class Renewal:
    """Answer to a heartbeat. cancel: the process is to be stopped."""

    cancel: bool
    lease_seconds: float
