"""Ray Jobs: each job of the queue that waits becomes a job of Ray, which runs a worker for it and nothing else.

Ray finds the node: by GPUs, CPUs and memory that the entrypoint reserves, and by the labels `cloud_type` and `hardware`
of its nodes. Log, cancel, exit code and files go from the worker to the server as always; the records of the queue stay
the truth, so that a head that is started anew loses nothing. Not here: starting Ray.
"""

import json
import re
import shlex
import time
from typing import Annotated, Any

import requests
from pydantic import BaseModel, ConfigDict, Field
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.runtime_env import RuntimeEnv

from tutelage.cluster.launchers.protocol import Found, LauncherError, Order, worker_command
from tutelage.cluster.records import Group, Tier
from tutelage.cluster.settings import ClusterSettings
from tutelage.config.faults import checked
from tutelage.errors import ConfigError
from tutelage.jobs.requirements import CloudType

CLUSTER, MACHINE, GROUP, TIER, JOB, COST = (
    "tutelage_cluster", "tutelage_machine", "tutelage_group", "tutelage_tier", "tutelage_job", "tutelage_cost",
)  # fmt: skip
"""What each of our jobs has in its metadata, by which a manager finds those of one before."""
CLOUD_TYPE_LABEL, HARDWARE_LABEL = "cloud_type", "hardware"
GOING_ON = (JobStatus.PENDING, JobStatus.RUNNING)
SIGTERM_TO_SIGKILL_SECONDS = 25
"""Ray gives a job three seconds; a worker needs more to end its own job and give it back."""
GOT_NO_PLACE = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"
"""Ray's word for a job that it has kept in its queue for longer than it likes, 15 minutes unless its head is told."""
_FAILURES = (RuntimeError, ConnectionError, requests.RequestException)
"""What Ray's client raises where a cluster is away or refuses."""
_NOT_IN_LABELS = re.compile(r"[^A-Za-z0-9_.-]+")


class RayOptions(BaseModel):
    """`options` of the file.

    address: of Ray's dashboard. python: that has tutelage, on every node. labels: whether nodes carry the labels;
    without, every node is taken to be of the cloud type and hardware that is asked for. cpus: reserved for each worker.
    runtime_env: of Ray, for its jobs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str = "http://127.0.0.1:8265"
    python: str = "python3"
    labels: bool = True
    cpus: Annotated[float, Field(ge=0)] = 1.0
    runtime_env: dict[str, Any] = {}


class RayResources(BaseModel):
    """`launcher` of a line of the catalogue: what of a node a worker reserves, beside its GPUs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: Annotated[float, Field(ge=0)] | None = None
    memory_gb: Annotated[float, Field(ge=0)] | None = None
    resources: dict[str, float] = {}


class RayLauncher:
    """Jobs of one Ray cluster. Raises ConfigError for options that are none."""

    one_job = True

    def __init__(self, settings: ClusterSettings) -> None:
        self._name = settings.name
        self._options = checked(RayOptions, settings.options, "options")
        self._resources = {
            entry.name: checked(RayResources, entry.launcher, f"hardware: {entry.name}: launcher")
            for entry in settings.hardware
        }
        try:
            RuntimeEnv(**self._options.runtime_env)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"options: runtime_env: Ray refuses it ({error}); see Ray's page on runtime environments"
            ) from error
        self._client: JobSubmissionClient | None = None
        self._withdrawn: set[str] = set()
        self._placed_at: dict[str, float] = {}

    def found(self) -> list[Found]:
        """See `Launcher`. Jobs for which Ray found no place in its time are forgotten: the next plan asks again."""
        client = self._connected()
        try:
            jobs = {job.submission_id: job for job in client.list_jobs() if job.submission_id is not None}
            ours = {name: job for name, job in jobs.items() if (job.metadata or {}).get(CLUSTER) == self._name}
            self._withdrawn &= set(ours)
            for name, job in ours.items():
                if job.status not in GOING_ON and (name in self._withdrawn or job.error_type == GOT_NO_PLACE):
                    client.delete_job(name)
                    self._withdrawn.add(name)
        except _FAILURES as error:
            raise self._away(error) from error
        # Of a job that runs Ray tells when it was submitted, and not when it got its place.
        placed = [name for name, job in ours.items() if job.status is not JobStatus.PENDING]
        self._placed_at = {name: self._placed_at.get(name, time.time()) for name in placed}
        return [
            _found(job, self._placed_at.get(name, time.time()))
            for name, job in ours.items()
            if name not in self._withdrawn
        ]

    def start(self, order: Order) -> None:
        """See `Launcher`. Ray queues what finds no node; a job that cannot start says so when it is looked at."""
        start = order.start
        resources = self._resources[start.tier.hardware]
        # Where Ray may choose between the two, the worker promises no more than the lesser one.
        promised = CloudType.COMMUNITY if start.group.cloud_type is CloudType.ALL else start.group.cloud_type
        command = [self._options.python, "-m", "tutelage", "worker", *worker_command(order, promised)]
        runtime_env = dict(self._options.runtime_env)
        runtime_env["env_vars"] = {
            "RAY_JOB_STOP_WAIT_TIME_S": str(SIGTERM_TO_SIGKILL_SECONDS),
            **(runtime_env.get("env_vars") or {}),
            "TUTELAGE_URL": order.url,
            "TUTELAGE_API_KEY": order.token,
        }
        try:
            self._connected().submit_job(
                entrypoint=shlex.join(command),
                submission_id=f"{start.job_id}-{order.run_id}",
                runtime_env=runtime_env,
                metadata=self._metadata(order),
                entrypoint_num_cpus=self._options.cpus if resources.cpus is None else resources.cpus,
                entrypoint_num_gpus=gpus_and_name(start.tier.hardware)[0],
                entrypoint_memory=None if resources.memory_gb is None else int(resources.memory_gb * 1e9),
                entrypoint_resources=resources.resources or None,
                entrypoint_label_selector=self._selector(order),
            )
        except _FAILURES as error:
            raise self._away(error) from error

    def stop(self, machine_id: str) -> None:
        """See `Launcher`. Ray forgets the job, once its process is gone; its log is at the server.

        What is in Ray's queue cannot be taken out of it: it is told to stop as soon as it gets a place, and until then
        is none of the machines.
        """
        client = self._connected()
        try:
            for job in client.list_jobs():
                if (job.metadata or {}).get(MACHINE) == machine_id and job.submission_id is not None:
                    if job.status in GOING_ON:
                        client.stop_job(job.submission_id)
                        if job.status is JobStatus.PENDING:
                            self._withdrawn.add(job.submission_id)
                    else:
                        client.delete_job(job.submission_id)
        except _FAILURES as error:
            raise self._away(error) from error

    def close(self) -> None:
        """See `Launcher`."""

    def _connected(self) -> JobSubmissionClient:
        """Raises LauncherError."""
        if self._client is None:
            try:
                self._client = JobSubmissionClient(self._options.address)
            except _FAILURES as error:
                raise self._away(error) from error
        return self._client

    def _away(self, error: Exception) -> LauncherError:
        self._client = None
        said = str(error).strip().rstrip(".")[:300]
        return LauncherError(
            f"Ray at {self._options.address} does not answer as it should ({said}); see that its head runs and that "
            "options: address is its dashboard's"
        )

    def _selector(self, order: Order) -> dict[str, str] | None:
        if not self._options.labels:
            return None
        group = order.start.group
        both = group.cloud_type is CloudType.ALL
        return {
            CLOUD_TYPE_LABEL: "in(SECURE,COMMUNITY)" if both else group.cloud_type.value,
            HARDWARE_LABEL: gpus_and_name(order.start.tier.hardware)[1],
        }

    def _metadata(self, order: Order) -> dict[str, str]:
        start = order.start
        return {
            CLUSTER: self._name,
            MACHINE: order.machine_id,
            GROUP: json.dumps([start.group.cloud_type.value, start.group.image, start.group.hardware]),
            TIER: json.dumps([start.tier.hardware, start.tier.cloud_type.value]),
            JOB: start.job_id,
            COST: repr(start.cost_per_hour),
        }


def _found(job: JobDetails, started_at: float) -> Found:
    tags = job.metadata or {}
    cloud_type, image, hardware = json.loads(tags[GROUP])
    tier, tier_type = json.loads(tags[TIER])
    return Found(
        tags[MACHINE],
        Group(CloudType(cloud_type), image, tuple(hardware)),
        Tier(tier, CloudType(tier_type)),
        float(tags[COST]),
        started_at,
        tags[JOB],
        _end_of(job),
        is_queued=job.status is JobStatus.PENDING,
    )


def _end_of(job: JobDetails) -> str | None:
    if job.status in GOING_ON:
        return None
    if job.status is JobStatus.SUCCEEDED:
        return "its worker has done its job"
    return f"Ray says {job.status}: {(job.message or '').strip()[:300]}"


def gpus_and_name(hardware: str) -> tuple[int, str]:
    """How many GPUs to reserve, and the label of nodes that have them: (2, "RTX-4090") for `2x RTX 4090`."""
    count, times, name = hardware.partition("x ")
    if not times:
        return 0, hardware
    return int(count), _NOT_IN_LABELS.sub("-", name).strip("-_.")
