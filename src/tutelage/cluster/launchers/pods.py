"""What a pod of RunPod is given: hardware, disks, tags by which it is found again, and the command it starts with.
Not here: the calls to RunPod."""

import base64
import json
import shlex
from collections.abc import Mapping
from importlib.metadata import version
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tutelage.cluster.launchers.protocol import Found, LauncherError, Order, worker_command
from tutelage.cluster.records import Group, Tier
from tutelage.cluster.settings import ClusterSettings, HardwareEntry
from tutelage.config.faults import checked
from tutelage.errors import ConfigError
from tutelage.jobs.requirements import CloudType

TAGS = "TUTELAGE_POD"
"""The variable of a pod's environment that says which machine of which cluster it is."""
OWN_VARIABLES = ("TUTELAGE_URL", "TUTELAGE_API_KEY", TAGS)
ENDED = ("EXITED", "PAUSED", "DEAD")
"""What RunPod calls pods that are no machines any more: one that was outbid is EXITED. Its other words are of pods that
are there or soon will be; whether they work, their workers show."""
Gigabytes = Annotated[int, Field(ge=0, le=100_000)]


class RunPodOptions(BaseModel):
    """`options` of the file.

    api_key_variable: of the manager's environment, which has the key of RunPod. interruptible: rent spot machines at
    the `bid_per_gpu` of each piece of hardware. image: where neither job nor `default_image` names one. install: what
    pip installs before the worker starts; empty, nothing. python: that has pip. disk_gb: of the container. volume_gb:
    of a disk that is mounted at volume_path; network_volume: id of one that is there already, in this data_center.
    template: id of one of RunPod. cuda_versions: that a host may have. env: of the pod, beside what tells its worker
    where the server is. alone_seconds: a pod that no manager stops removes itself when it had no job for idle_seconds
    and so many more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_key_variable: str = "RUNPOD_API_KEY"
    interruptible: bool = False
    image: str = "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404"
    install: list[str] = [f"tutelage[judge,train,trl]=={version('tutelage')}"]
    python: str = "python3"
    disk_gb: Gigabytes = 50
    volume_gb: Gigabytes = 0
    volume_path: str = "/workspace"
    network_volume: str | None = None
    data_center: str | None = None
    template: str | None = None
    cuda_versions: list[str] | None = None
    env: dict[str, str] = {}
    alone_seconds: Annotated[float, Field(gt=0, le=1e6)] = 1800.0

    @model_validator(mode="after")
    def _fits_together(self) -> "RunPodOptions":
        if self.network_volume is not None and self.data_center is None:
            raise ValueError(f"network_volume '{self.network_volume}' is in one data center only; give 'data_center'")
        taken = next((name for name in OWN_VARIABLES if name in self.env), None)
        if taken is not None:
            raise ValueError(f"env: {taken} is set for each pod by itself; leave it out")
        return self


class PodHardware(BaseModel):
    """`launcher` of a line of the catalogue.

    gpu_type: RunPod's id of the GPU, such as `NVIDIA GeForce RTX 4090`; how many is in the name of the line.
    bid_per_gpu: US dollars an hour. min_vcpus, min_memory_gb: of the host, for the pod. instance: RunPod's id of a
    machine without a GPU.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpu_type: str | None = None
    bid_per_gpu: Annotated[float, Field(gt=0, le=1000)] | None = None
    min_vcpus: Annotated[int, Field(ge=1)] = 1
    min_memory_gb: Annotated[int, Field(ge=1)] = 1
    instance: str | None = None


def pod_hardware(entry: HardwareEntry, *, interruptible: bool) -> PodHardware:
    """What RunPod has to know of a line of the catalogue. Raises ConfigError."""
    place = f"hardware: {entry.name}: launcher"
    found = checked(PodHardware, entry.launcher, place)
    if (found.gpu_type is None) != (entry.name == "cpu"):
        remedy = "leave out 'gpu_type'" if entry.name == "cpu" else "give 'gpu_type', as RunPod calls the GPU"
        raise ConfigError(f"{place}: a pod of {entry.name} is asked for by what it has; {remedy}")
    if interruptible and found.bid_per_gpu is None:
        raise ConfigError(f"{place}: a spot machine needs a bid; give 'bid_per_gpu', or set 'interruptible: false'")
    if interruptible and found.gpu_type is None:
        raise ConfigError(f"{place}: RunPod has no spot machines without a GPU; set 'interruptible: false'")
    return found


def arguments(
    order: Order, settings: ClusterSettings, options: RunPodOptions, hardware: PodHardware, now: float
) -> dict[str, Any]:
    """Of `runpod.create_pod`, without those that are unset. now: seconds since the epoch."""
    tier, image = order.start.tier, image_of(order, settings, options)
    own = {"TUTELAGE_URL": order.url, "TUTELAGE_API_KEY": order.token, TAGS: tags(settings.name, order, now)}
    given: dict[str, Any] = {
        "name": order.machine_id,
        "image_name": image or "",
        "gpu_type_id": hardware.gpu_type,
        "gpu_count": 1 if hardware.gpu_type is None else int(tier.hardware.partition("x ")[0]),
        "cloud_type": tier.cloud_type.value,
        "support_public_ip": False,
        "start_ssh": False,
        "container_disk_in_gb": options.disk_gb,
        "volume_in_gb": options.volume_gb,
        "volume_mount_path": options.volume_path,
        "min_vcpu_count": hardware.min_vcpus,
        "min_memory_in_gb": hardware.min_memory_gb,
        "docker_args": command(order, settings, options),
        "env": {**options.env, **own},
        "template_id": options.template,
        "network_volume_id": options.network_volume,
        "data_center_id": options.data_center,
        "allowed_cuda_versions": options.cuda_versions,
        "instance_id": hardware.instance,
    }
    return {name: value for name, value in given.items() if value is not None}


def image_of(order: Order, settings: ClusterSettings, options: RunPodOptions) -> str | None:
    """The image of a pod; None, that of the template."""
    named = order.start.group.image or settings.default_image
    return named or (None if options.template else options.image)


# --- tags ---------------------------------------------------------------------------------------------------------


def tags(cluster: str, order: Order, now: float) -> str:
    """All that a manager has to know of a machine, and no secret."""
    start = order.start
    content = {
        "cluster": cluster,
        "machine": order.machine_id,
        "group": [start.group.cloud_type.value, start.group.image, list(start.group.hardware)],
        "tier": [start.tier.hardware, start.tier.cloud_type.value],
        "cost": start.cost_per_hour,
        "started": now,
        "job": start.job_id,
    }
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


def found_of(pod: Mapping[str, Any], cluster: str) -> Found | None:
    """The machine that a pod is; None for pods of others. Raises LauncherError for tags that cannot be read."""
    environment: list[str] = pod.get("env") or []
    written = next((line.partition("=")[2] for line in environment if line.startswith(f"{TAGS}=")), None)
    if written is None:
        return None
    try:
        content: dict[str, Any] = json.loads(base64.urlsafe_b64decode(written))
        return _found(pod, content) if content["cluster"] == cluster else None
    except (ValueError, KeyError, TypeError) as error:
        # To pass it over would leave a machine that costs money and that nobody counts.
        raise LauncherError(
            f"the pod {pod.get('id')} has a {TAGS} that cannot be read ({error!r}); terminate it at RunPod by hand"
        ) from error


def _found(pod: Mapping[str, Any], content: Mapping[str, Any]) -> Found:
    cloud_type, image, hardware = content["group"]
    tier, tier_type = content["tier"]
    status = pod.get("desiredStatus")
    return Found(
        content["machine"],
        Group(CloudType(cloud_type), image, tuple(hardware)),
        Tier(tier, CloudType(tier_type)),
        float(pod.get("costPerHr") or content["cost"]),
        float(content["started"]),
        ended=f"RunPod says that its pod is {status}" if status in ENDED else None,
    )


# --- the command --------------------------------------------------------------------------------------------------

_REMOVE = """
import json, os, urllib.request
query = 'mutation { podTerminate(input: { podId: "%s" }) }' % os.environ["RUNPOD_POD_ID"]
headers = {
    "Authorization": "Bearer " + os.environ["RUNPOD_API_KEY"],
    "Content-Type": "application/json",
    "User-Agent": "tutelage",
}
url = os.environ.get("RUNPOD_API_BASE_URL", "https://api.runpod.io") + "/graphql"
request = urllib.request.Request(url, json.dumps({"query": query}).encode(), headers)
answer = json.load(urllib.request.urlopen(request, timeout=60))
raise SystemExit(str(answer["errors"]) if "errors" in answer else 0)
"""
"""For images without RunPod's own command. RunPod gives each pod a key with which it may remove itself."""

_START = """\
# Installs and runs a worker, and removes this pod when it ends, however it ends: a pod that stays costs money.
remove() {{
    until runpodctl remove pod "$RUNPOD_POD_ID" || {python} -c {remove}; do sleep 60; done
}}
export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
if {install}; then
    {worker} &
    worker=$!
    # RunPod asks the first process of the pod alone to end: the worker gives its job back then.
    trap 'kill -TERM "$worker"' TERM INT
    while kill -0 "$worker" 2>/dev/null; do wait "$worker"; done
fi
remove
"""


def command(order: Order, settings: ClusterSettings, options: RunPodOptions) -> str:
    """What the container runs. It has no quote but single ones around it and nothing that a shell would replace, since
    RunPod and its package pass it on through texts of their own."""
    script = _START.format(
        python=shlex.quote(options.python),
        remove=shlex.quote(_REMOVE),
        install=_install(options, settings.start_seconds),
        worker=shlex.join(_worker(order, settings, options)),
    )
    return f"bash -c 'exec bash <(echo {base64.b64encode(script.encode()).decode()} | base64 -d)'"


def _install(options: RunPodOptions, seconds: float) -> str:
    """A pip that hangs ends when the manager gives the pod up: there may be none any more that does."""
    if not options.install:
        return "true"
    pip = [options.python, "-m", "pip", "install", "--retries", "10", *options.install]
    return shlex.join(["timeout", f"{seconds:.0f}", *pip])


def _worker(order: Order, settings: ClusterSettings, options: RunPodOptions) -> list[str]:
    """It stands for the image the pod has, also where its group needs none: jobs of other images are not for it."""
    idle = settings.idle_seconds + options.alone_seconds
    image = image_of(order, settings, options) or f"template:{options.template}"
    told = worker_command(order, image=image)
    return [options.python, "-m", "tutelage", "worker", *told, "--max-idle", f"{idle:.0f}"]
