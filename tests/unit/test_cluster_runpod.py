"""The launcher through the real package `runpod`, against RunPod's calls on this machine; pods without processes."""

import base64
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("runpod", reason="pip install 'tutelage[runpod]'; make test-older has it")

import requests

from tests.runpod_server import GPU, KEY, SOLD_OUT, Fault, RunPodServer, refusal, runpod_server
from tutelage.cluster.launchers import runpod as launcher_module
from tutelage.cluster.launchers.pods import TAGS
from tutelage.cluster.launchers.protocol import LauncherError, NoCapacityError, Order
from tutelage.cluster.launchers.runpod import RunPodLauncher
from tutelage.cluster.opening import open_launcher
from tutelage.cluster.records import Group, Start, Tier
from tutelage.cluster.settings import ClusterSettings
from tutelage.errors import ConfigError
from tutelage.jobs.requirements import CloudType

TOKEN = "tut-secret-of-the-machine"
RTX = {"name": "2x RTX 4090", "secure": 1.4, "community": 0.8, "launcher": {"gpu_type": GPU, "bid_per_gpu": 0.25}}
GROUP = Group(CloudType.ALL, None, ("2x RTX 4090",))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunPodServer]:
    monkeypatch.setenv("HOME", str(tmp_path))
    with runpod_server(tmp_path / "runpod") as running:
        running.runs = False
        monkeypatch.setenv("RUNPOD_API_BASE_URL", running.url)
        monkeypatch.setenv("RUNPOD_API_KEY", KEY)
        yield running


def settings(**changes: Any) -> ClusterSettings:
    values = {"name": "gpus", "launcher": "runpod", "max_workers": 5, "hardware": [RTX]}
    return ClusterSettings.model_validate(values | changes)


def launcher(**changes: Any) -> RunPodLauncher:
    found = open_launcher(settings(**changes), Path("unused"))
    assert isinstance(found, RunPodLauncher)
    return found


def order(machine: str = "gpus-1", cloud_type: CloudType = CloudType.COMMUNITY, group: Group = GROUP) -> Order:
    start = Start(group, Tier(group.hardware[0], cloud_type), 0.8, "job-1")
    return Order(machine, start, "https://server.example", TOKEN)


def script_of(docker_args: str) -> str:
    """What the command of a pod runs."""
    return base64.b64decode(docker_args.split("echo ")[1].split(" |")[0]).decode()


# --- what a pod is asked for --------------------------------------------------------------------------------------


def test_a_pod_has_all_that_was_asked_for(server: RunPodServer) -> None:
    options = {
        "disk_gb": 70, "volume_gb": 30, "volume_path": "/data", "network_volume": "vol1", "data_center": "EU-RO-1",
        "template": "tpl1", "cuda_versions": ["12.8", "12.9"], "env": {"NOTE": 'a "b"\\\n{{ RUNPOD_SECRET_hf }}'},
    }  # fmt: skip
    cluster = launcher(options=options, default_image="our/image:1")
    cluster.start(order())
    (pod,) = server.created
    assert pod.kind == "podFindAndDeployOnDemand"
    given = {name: value for name, value in pod.given.items() if name not in ("env", "dockerArgs")}
    assert given == {
        "name": "gpus-1", "imageName": "our/image:1", "cloudType": "COMMUNITY", "gpuTypeId": GPU, "gpuCount": 2,
        "supportPublicIp": False, "volumeInGb": 30, "containerDiskInGb": 70, "volumeMountPath": "/data",
        "minVcpuCount": 1, "minMemoryInGb": 1, "templateId": "tpl1", "networkVolumeId": "vol1",
        "dataCenterId": "EU-RO-1", "allowedCudaVersions": ["12.8", "12.9"],
    }  # fmt: skip
    env = pod.env
    assert env.pop(TAGS)
    assert env == {**options["env"], "TUTELAGE_URL": "https://server.example", "TUTELAGE_API_KEY": TOKEN}


@pytest.mark.parametrize("cloud_type", [CloudType.SECURE, CloudType.COMMUNITY])
@pytest.mark.parametrize("interruptible", [False, True])
def test_cloud_type_and_spot_reach_runpod(server: RunPodServer, cloud_type: CloudType, interruptible: bool) -> None:
    """A spot machine differs in the mutation and the bid, and in what the package sends beside what is given."""
    cluster = launcher(options={"interruptible": interruptible, "env": {"NOTE": 'a "b"\\\n'}})
    cluster.start(order(cloud_type=cloud_type))
    (pod,) = server.created
    assert pod.kind == ("podRentInterruptable" if interruptible else "podFindAndDeployOnDemand")
    assert pod.given.get("bidPerGpu") == (0.25 if interruptible else None)
    assert (pod.given["cloudType"], pod.given["gpuCount"], pod.given["gpuTypeId"]) == (cloud_type.value, 2, GPU)
    assert pod.env["NOTE"] == 'a "b"\\\n'
    assert script_of(pod.given["dockerArgs"]).count("tutelage worker --name gpus-1") == 1
    (found,) = cluster.found()
    assert found.tier == Tier("2x RTX 4090", cloud_type)


def test_a_pod_without_a_gpu_is_of_an_instance(server: RunPodServer) -> None:
    cpu = {"name": "cpu", "secure": 0.1, "launcher": {"instance": "cpu3c-2-4"}}
    cluster = launcher(hardware=[cpu])
    cluster.start(order(cloud_type=CloudType.SECURE, group=Group(CloudType.SECURE, "its/image:2", ("cpu",))))
    (pod,) = server.created
    assert (pod.kind, pod.given["instanceId"]) == ("deployCpuPod", "cpu3c-2-4")
    assert pod.given["imageName"] == "its/image:2"
    assert "--image its/image:2" in script_of(pod.given["dockerArgs"])


@pytest.mark.parametrize(
    ("changes", "image"),
    [
        ({}, "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404"),
        ({"options": {"image": "me/torch:2"}}, "me/torch:2"),
        ({"options": {"template": "tpl1"}}, "template:tpl1"),
        ({"default_image": "our/image:1"}, "our/image:1"),
    ],
    ids=["package's", "option", "template", "default"],
)
def test_the_worker_stands_for_the_image_of_its_pod(server: RunPodServer, changes: dict[str, Any], image: str) -> None:
    """Of a group that needs none: it would take jobs of any image, and run them in this one."""
    launcher(**changes).start(order())
    assert f" --image {image} " in script_of(server.created[0].given["dockerArgs"])


def test_an_address_that_no_pod_reaches_is_refused(server: RunPodServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNPOD_API_BASE_URL")
    given = replace(order(), url="http://localhost:8000")
    with pytest.raises(
        ConfigError, match=r"url: http://localhost:8000 is this machine itself.*give the server's 'url'"
    ):
        launcher().start(given)


def test_the_command_is_bash_without_anything_to_replace(server: RunPodServer) -> None:
    """Quotes, dollars and backslashes of options are inside base64; and what is in there is a valid script."""
    cluster = launcher(options={"install": ["tutelage @ https://a.example/x?y=1&z='$2\"", "b"]}, start_seconds=77)
    cluster.start(order())
    command = server.created[0].given["dockerArgs"]
    assert not set(command) & set('"\\$`\n')
    script = script_of(command)
    subprocess.run(["bash", "-n"], input=script.encode(), check=True)
    assert "if timeout 77 python3 -m pip install --retries 10 'tutelage @ https" in script
    assert " --max-idle 2100 &" in script  # idle_seconds 300 and alone_seconds 1800


# --- what is found ------------------------------------------------------------------------------------------------


def test_another_manager_finds_everything_and_no_pods_of_others(server: RunPodServer) -> None:
    began = time.time()
    launcher().start(order())
    launcher(name="other").start(order("other-1"))
    server.create("podFindAndDeployOnDemand", {"name": "by hand", "env": []})
    server.created[0].cost = 0.61
    (found,) = launcher().found()
    assert (found.machine_id, found.group, found.tier) == ("gpus-1", GROUP, Tier("2x RTX 4090", CloudType.COMMUNITY))
    assert found.cost_per_hour == 0.61  # as RunPod says, not 0.8 as in the catalogue
    assert began <= found.started_at <= time.time()
    assert (found.job_id, found.ended) == (None, None)
    tags = json.loads(base64.urlsafe_b64decode(server.created[0].env[TAGS]))
    assert tags["job"] == "job-1"
    assert TOKEN not in json.dumps(tags)


@pytest.mark.parametrize(("status", "ended"), [("EXITED", True), ("DEAD", True), ("RUNNING", False), ("NEW", False)])
def test_a_pod_that_ended_is_said_to_have_ended(server: RunPodServer, status: str, ended: bool) -> None:
    cluster = launcher()
    cluster.start(order())
    server.created[0].status = status
    (found,) = cluster.found()
    assert found.ended == (f"RunPod says that its pod is {status}" if ended else None)
    cluster.stop("gpus-1")
    assert cluster.found() == []
    assert server.pods == {}


def test_a_pod_that_is_gone_has_ended_until_it_is_stopped(server: RunPodServer) -> None:
    """So that a manager counts it: a pod removes itself when its worker cannot be installed."""
    cluster = launcher()
    cluster.start(order())
    assert [one.ended for one in cluster.found()] == [None]
    server.lose(server.created[0])
    for _ in range(2):
        assert [one.ended for one in cluster.found()] == ["its pod is gone"]
    cluster.stop("gpus-1")
    assert cluster.found() == []


def test_a_new_pod_may_be_missing_from_the_list_for_a_minute(
    server: RunPodServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.listing = False
    cluster = launcher()
    cluster.start(order())
    assert [one.ended for one in cluster.found()] == [None]
    monkeypatch.setattr(launcher_module, "UNLISTED_SECONDS", 0.0)
    assert [one.ended for one in cluster.found()] == ["its pod is gone"]
    server.created[0].listed = True
    assert [one.ended for one in cluster.found()] == [None]


@pytest.mark.parametrize("content", [b"nothing", b"{}", b'{"cluster": "gpus", "machine": 1, "group": [2]}'])
def test_tags_that_cannot_be_read_are_no_reason_to_forget_a_pod(server: RunPodServer, content: bytes) -> None:
    variable = {"key": TAGS, "value": base64.urlsafe_b64encode(content).decode()}
    pod = server.create("podFindAndDeployOnDemand", {"name": "gpus-1", "env": [variable]})
    with pytest.raises(LauncherError, match=f"the pod {pod.id} has a {TAGS} that .*; terminate it at RunPod by hand"):
        launcher().found()


def test_a_terminated_pod_that_runpod_still_lists_is_none(server: RunPodServer) -> None:
    cluster = launcher()
    cluster.start(order())
    server.created[0].status = "TERMINATED"
    assert launcher().found() == []


# --- faults -------------------------------------------------------------------------------------------------------

RATE = Fault(429, "Too Many Requests")
DOWN = Fault(502, "<html>Bad\n gateway</html>")
NOT_JSON = "where JSON should be, as when it is asked too often or is down"
FAULTS: list[tuple[Fault, type[LauncherError], str]] = [
    (refusal(SOLD_OUT), NoCapacityError, "no longer any instances"),
    (refusal("There are not enough free GPUs on the host machine."), NoCapacityError, "not enough free GPUs"),
    (Fault(body='{"data": {"podFindAndDeployOnDemand": null}}'), NoCapacityError, "gives no machine"),
    (RATE, LauncherError, f"it says 'Too Many Requests' {NOT_JSON}"),
    (Fault(429, '{"errors": [{"message": "rate limited"}]}'), LauncherError, "refuses to create a pod .*rate limited"),
    (DOWN, LauncherError, f"it says '<html>Bad gateway</html>' {NOT_JSON}"),
    (Fault(500, ""), LauncherError, f"it says 'nothing' {NOT_JSON}"),
    (Fault(503, "{}"), LauncherError, "makes no sense when it was asked to create a pod"),
    (Fault(200, '{"data": null}'), LauncherError, "makes no sense"),
    (Fault(401), LauncherError, "does not take the API key in RUNPOD_API_KEY; give one that may read and write pods"),
    (refusal(f"syntax error near {TOKEN} of {KEY}"), NoCapacityError, r"near \*\*\* of \*\*\*"),
    (refusal("the network volume is in another data center"), NoCapacityError, "refuses .*another data center"),
    (refusal("Something went wrong. Please try again later"), LauncherError, "refuses to create .*try again later"),
]


@pytest.mark.parametrize(("fault", "kind", "said"), FAULTS, ids=range(len(FAULTS)))
def test_faults_of_a_start(server: RunPodServer, fault: Fault, kind: type[LauncherError], said: str) -> None:
    """The sentence says what was asked of whom; the next try works, and there is one pod."""
    cluster = launcher()
    server.fail("podFindAndDeployOnDemand", fault)
    with pytest.raises(LauncherError, match=said) as caught:
        cluster.start(order())
    assert type(caught.value) is kind
    assert KEY not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert cluster.found() == []
    cluster.start(order())
    assert [one.machine_id for one in cluster.found()] == ["gpus-1"]


@pytest.mark.parametrize("fault", [RATE, DOWN, Fault(401), Fault(loses=True), refusal("down for repair")])
def test_faults_lose_nothing(server: RunPodServer, fault: Fault) -> None:
    """Neither of looking nor of stopping. A pod whose termination was done though its answer was lost is gone."""
    cluster = launcher()
    cluster.start(order())
    server.fail("myself", fault)
    with pytest.raises(LauncherError, match=f"RunPod at {server.url} "):
        cluster.found()
    assert [one.machine_id for one in cluster.found()] == ["gpus-1"]
    server.fail("podTerminate", fault)
    if fault.loses:
        cluster.stop("gpus-1")
    else:
        with pytest.raises(LauncherError, match=f"RunPod at {server.url} "):
            cluster.stop("gpus-1")
        assert [one.ended for one in cluster.found()] == [None]
        cluster.stop("gpus-1")
    assert server.pods == {}
    assert cluster.found() == []


def test_a_pod_whose_creation_was_not_answered_is_found(server: RunPodServer) -> None:
    """A second one for the same machine too: both are terminated."""
    cluster = launcher()
    server.fail("podFindAndDeployOnDemand", Fault(loses=True), Fault(loses=True))
    for _ in range(2):
        with pytest.raises(LauncherError, match="gave no answer when it was asked to create a pod for 2x RTX 4090"):
            cluster.start(order())
    assert [one.machine_id for one in cluster.found()] == ["gpus-1"]
    cluster.stop("gpus-1")
    assert sorted(pod for pod, _ in server.removed) == sorted(pod.id for pod in server.created)
    assert len(server.removed) == 2


def test_a_call_that_hangs_ends(server: RunPodServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package gives each of its calls 30 s, which is 0.2 s here."""
    asked: list[float] = []
    post = requests.post

    def impatient(url: str, timeout: float, **options: Any) -> requests.Response:
        asked.append(timeout)
        return post(url, timeout=0.2, **options)

    monkeypatch.setattr(requests, "post", impatient)
    server.fail("myself", Fault(hangs=True))
    with pytest.raises(LauncherError, match=r"gave no answer when it was asked to list the pods .*timed out"):
        launcher().found()
    assert asked == [30]


def test_nobody_listens(server: RunPodServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_API_BASE_URL", "http://127.0.0.1:1")
    with pytest.raises(LauncherError, match=r"RunPod at http://127.0.0.1:1 gave no answer .*; look at the network"):
        launcher().found()


def test_a_gpu_that_runpod_does_not_know_rests_like_one_that_is_sold_out(server: RunPodServer) -> None:
    wrong = RTX | {"launcher": {"gpu_type": "RTX 9090"}}
    with pytest.raises(NoCapacityError, match="mend 'gpu_type' 'RTX 9090' in the catalogue"):
        launcher(hardware=[wrong]).start(order())


def test_what_is_gone_can_be_stopped(server: RunPodServer) -> None:
    cluster = launcher()
    cluster.stop("gpus-7")
    cluster.start(order())
    server.lose(server.created[0])
    cluster.stop("gpus-1")
    assert server.count("podTerminate") == 1
    assert cluster.found() == []


# --- settings -----------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"options": {"disk": 5}}, "options: 'disk' is not an option; did you mean 'disk_gb'"),
    ({"options": {"network_volume": "v"}}, "network_volume 'v' is in one data center only; give 'data_center'"),
    ({"options": {"env": {TAGS: "x"}}}, f"env: {TAGS} is set for each pod by itself; leave it out"),
    ({"hardware": [RTX | {"launcher": {}}]}, "hardware: 2x RTX 4090: launcher: .*give 'gpu_type'"),
    ({"hardware": [{"name": "cpu", "secure": 1, "launcher": {"gpu_type": GPU}}]}, "leave out 'gpu_type'"),
    (
        {"hardware": [RTX | {"launcher": {"gpu_type": GPU}}], "options": {"interruptible": True}},
        "a spot machine needs a bid; give 'bid_per_gpu', or set 'interruptible: false'",
    ),
    (
        {
            "hardware": [{"name": "cpu", "secure": 1, "launcher": {"bid_per_gpu": 1}}],
            "options": {"interruptible": True},
        },
        "no spot machines without a GPU",
    ),
]


@pytest.mark.parametrize(("changes", "said"), WRONG, ids=range(len(WRONG)))
def test_options_that_are_none(server: RunPodServer, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        launcher(**changes)


def test_without_an_api_key_it_says_where_to_put_one(server: RunPodServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    with pytest.raises(ConfigError, match="set OTHER_KEY in the manager's environment"):
        launcher(options={"api_key_variable": "OTHER_KEY"})
    monkeypatch.setenv("OTHER_KEY", KEY)
    assert launcher(options={"api_key_variable": "OTHER_KEY"}).found() == []


def test_importing_it_prints_nothing_and_leaves_logging_as_it_was() -> None:
    """RunPod's package has everything logged to standard error."""
    code = (
        "import logging, threading, tutelage.cluster.launchers.runpod as one\n"
        "print(logging.getLogger().handlers, logging.getLogger().level, threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"[] {logging.WARNING} 1\n", "")
