"""A manager with the launcher of RunPod, a real server, and pods that run their start command as real processes."""

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("runpod", reason="pip install 'tutelage[runpod]'; make test-older has it")

from tests.managing import PATIENCE, Managed, ended, word
from tests.runpod_server import GPU, KEY, Pod, RunPodServer, refusal, runpod_server, worker_of
from tests.served import Api, Served, served, until
from tests.workers import is_alive, log, runs, status

ROOT = Path(__file__).resolve().parents[2]
LONG = "echo id=$$; while [ ! -e {go} ]; do sleep 0.05; done; echo over"
RTX = {"name": "1x RTX 4090", "secure": 0.7, "community": 0.4, "ignore_vram": True, "launcher": {"gpu_type": GPU}}


@pytest.fixture
def server(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Served]:
    """Of one test: workers of pods that another one killed would count as machines for a while."""
    with served(tmp_path / "server", migrated=migrated_sqlite, lease_seconds=2.0, heartbeat_seconds=0.2) as running:
        yield running


@pytest.fixture
def api(server: Served) -> Api:
    return server.api()


@pytest.fixture
def pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunPodServer]:
    with runpod_server(tmp_path / "runpod") as running:
        monkeypatch.setenv("RUNPOD_API_BASE_URL", running.url)
        monkeypatch.setenv("RUNPOD_API_KEY", KEY)
        running.environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        yield running


def manage(server: Served, folder: Path, options: dict[str, Any] | None = None, **changes: Any) -> Managed:
    values: dict[str, Any] = {
        "name": "gpus",
        "launcher": "runpod",
        "max_workers": 3,
        "round_seconds": 0.2,
        "silent_seconds": 6,
        "idle_seconds": 60,
        "ladder": [0.5],
        "hardware": [RTX],
        "options": {"python": sys.executable, "install": []} | (options or {}),
    }
    return Managed(server, folder, values | changes)


@pytest.fixture
def managing(server: Served, tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack:

        def start(**changes: Any) -> Managed:
            one = manage(server, tmp_path, **changes)
            stack.callback(one.stop)
            return one

        yield start


def process_of(pod: Pod) -> int:
    assert pod.process is not None
    return pod.process.pid


def all_end(pods: RunPodServer) -> None:
    """None of them is at RunPod, and the first process of each has ended."""
    until(lambda: not pods.pods, "that RunPod has no pods left", PATIENCE)
    for pod in pods.created:
        if pod.process is not None:
            pod.process.wait(PATIENCE)


# --- the start command --------------------------------------------------------------------------------------------


def wheel_of_the_project(folder: Path) -> Path:
    """Its code of now as pip installs it, in a version that nothing else has, without what it needs."""
    path = folder / "tutelage-0.1.0+pod-py3-none-any.whl"
    info = "tutelage-0.1.0+pod.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for file in sorted((ROOT / "src/tutelage").rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                wheel.write(file, str(file.relative_to(ROOT / "src")))
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tutelage\nVersion: 0.1.0+pod\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def environment_of_an_image(folder: Path) -> Path:
    """A Python with everything that this project needs, in front of which pip installs it; the Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    theirs = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "image.pth").write_text("\n".join(theirs) + "\n")
    return folder / "bin" / "python3"


def test_a_pod_installs_a_worker_that_runs_a_job_and_is_terminated_when_it_is_idle(
    managing: Any, pods: RunPodServer, api: Api, tmp_path: Path
) -> None:
    """From nothing but the command and the environment that RunPod was given, with the Python on the pod's path."""
    python = environment_of_an_image(tmp_path / "image")
    (pods.folder / "bin" / "python3").symlink_to(python)
    wheel = wheel_of_the_project(tmp_path)
    pods.environment |= {"PIP_NO_INDEX": "1", "PIP_NO_CACHE_DIR": "1"}
    managed = managing(options={"python": str(python), "install": [f"tutelage @ {wheel.as_uri()}"]}, idle_seconds=0.5)
    job = api.submit(entrypoint="echo what=$(printf %s it-runs); env; exit 3", cloud_type="COMMUNITY")
    found = ended(api, job)
    assert (found["status"], found["reason"], found["attempts"]) == ("failed", "exit code 3", 1)
    assert word(api, job, "what") == "it-runs"
    assert str(python.parent) in log(api, job)
    all_end(pods)
    (pod,) = pods.created
    assert pod.given["cloudType"] == "COMMUNITY"
    assert "Successfully installed tutelage-0.1.0+pod" in pod.output
    (worker,) = [one for one in managed.client.workers.list() if one.name == pod.given["name"]]
    assert (worker.cloud_type, worker.cost_per_hour) == ("COMMUNITY", 0.4)
    # The token of the machine is in the pod's environment; the job has another one, and no key of RunPod of ours.
    assert pod.env["TUTELAGE_API_KEY"] not in log(api, job)
    assert KEY not in log(api, job) + pod.output
    until(lambda: not managed.names_of_tokens(), "that the machine's token is revoked")
    assert not [text for text in managed.said if KEY in text or pod.env["TUTELAGE_API_KEY"] in text]


@pytest.mark.parametrize("with_command", [True, False])
def test_a_pod_that_nobody_stops_removes_itself(
    managing: Any, pods: RunPodServer, api: Api, with_command: bool
) -> None:
    """The manager is gone. With RunPod's own command or, in an image without it, by a call."""
    if not with_command:
        (pods.folder / "bin" / "runpodctl").unlink()
    managed = managing(options={"alone_seconds": 0.6}, idle_seconds=0.4)
    job = api.submit(entrypoint="echo done")
    worker_of(pods)
    managed.stop()
    assert ended(api, job)["status"] == "completed"
    all_end(pods)
    assert pods.removed == [(pods.created[0].id, "runpodctl" if with_command else "tutelage")]


@pytest.mark.parametrize("has_registered", [True, False])
def test_a_pod_whose_server_is_gone_removes_itself(
    pods: RunPodServer, migrated_sqlite: Path, tmp_path: Path, has_registered: bool
) -> None:
    """The machine with server and manager was shut down: nobody is left who could stop the pod."""
    pods.slow = not has_registered
    with served(tmp_path / "gone", migrated=migrated_sqlite) as running:
        managed = manage(running, tmp_path, options={"alone_seconds": 2}, idle_seconds=1)
        running.api().submit(entrypoint="echo done", cloud_type="SECURE" if has_registered else "ALL")
        if has_registered:
            worker_of(pods)
        else:
            until(lambda: pods.created, "a pod", PATIENCE)
        managed.stop()
    if not has_registered:
        pods.begin(pods.created[0])
    all_end(pods)
    assert len(pods.removed) == 1
    assert "the worker ends: " in pods.created[0].output


def test_a_pod_that_cannot_install_removes_itself_and_its_tier_rests(
    managing: Any, pods: RunPodServer, api: Api
) -> None:
    managed = managing(options={"install": ["./nothing.whl"]}, ladder=[600])
    job = api.submit(entrypoint="echo done", cloud_type="COMMUNITY")
    until(lambda: any("COMMUNITY failed to start" in text for text in managed.said), "the rest", PATIENCE)
    assert any(text.endswith("ends: its pod is gone") for text in managed.said)
    until(lambda: not pods.pods, "that all pods are gone", PATIENCE)
    assert pods.removed == [(pod.id, "runpodctl") for pod in pods.created]
    assert len(pods.created) <= 2  # a plan replaces what failed before that counts as a failure
    api.ok("POST", f"/api/jobs/{job['id']}/cancel")


# --- the manager --------------------------------------------------------------------------------------------------


def test_a_manager_after_another_finds_its_pods_and_stops_all(
    managing: Any, pods: RunPodServer, api: Api, tmp_path: Path
) -> None:
    """Nothing but RunPod knows of them."""
    first = managing()
    job = api.submit(entrypoint=LONG.format(go=tmp_path / "go"))
    process = word(api, job, "id")
    first.stop()
    second = managing()
    name = pods.created[0].given["name"]
    until(lambda: [one.machine_id for one in second.manager.launcher.found()] == [name], "the machine")
    assert is_alive(process)
    (tmp_path / "go").touch()
    assert (ended(api, job)["status"], ended(api, job)["attempts"]) == ("completed", 1)
    again = api.submit(entrypoint=LONG.format(go=tmp_path / "never"))
    process = word(api, again, "id")
    second.stop()
    second.manager.stop_all()
    all_end(pods)
    assert len(pods.created) == 1
    assert not is_alive(process)
    assert not second.names_of_tokens()
    assert second.said[-1] == "1 machine is stopped"
    until(lambda: status(api, again) == "pending", "that the job waits again")


def test_a_pod_that_is_terminated_by_hand_gives_its_job_back(
    managing: Any, pods: RunPodServer, api: Api, tmp_path: Path
) -> None:
    managed = managing()
    job = api.submit(entrypoint=LONG.format(go=tmp_path / "never"))
    word(api, job, "id")
    managed.stop()
    pods.terminate(pods.created[0].id, "hand")
    until(lambda: status(api, job) == "pending", "that the job waits again")
    assert "was not heard from" not in runs(api, job)[0]["reason"]


def test_a_pod_that_does_not_start_is_replaced(managing: Any, pods: RunPodServer, api: Api) -> None:
    pods.slow = True
    managed = managing(start_seconds=4)
    job = api.submit(entrypoint="echo done")
    until(lambda: pods.created, "the first pod")
    pods.slow = False
    assert ended(api, job)["status"] == "completed"
    first, second = pods.created
    assert pods.removed == [(first.id, pods.removed[0][1])]
    assert f"{first.given['name']}: ends: it has not started within 4 s" in managed.said
    assert process_of(second)


@pytest.mark.parametrize(
    ("status", "why"), [("EXITED", "RunPod says that its pod is EXITED"), (None, "its pod is gone")]
)
def test_the_job_of_a_pod_that_was_outbid_or_is_lost_is_done_on_another(
    managing: Any, pods: RunPodServer, api: Api, tmp_path: Path, status: str | None, why: str
) -> None:
    """RunPod keeps what it stopped, and its disk costs money: it is terminated. Its job is missed after the lease."""
    managed = managing()
    job = api.submit(entrypoint=LONG.format(go=tmp_path / "go"))
    word(api, job, "id")
    lost = pods.created[0]
    pods.lose(lost, status)
    until(lambda: len(runs(api, job)) == 2, "the second attempt", PATIENCE)
    (tmp_path / "go").touch()
    found = ended(api, job)
    assert (found["status"], found["attempts"]) == ("completed", 2)
    assert f"{lost.given['name']}: ends: {why}" in managed.said
    assert [pod for pod in pods.created if pod.id in pods.pods] == pods.created[1:]
    assert len(pods.created) == 2


def test_what_is_sold_out_is_had_elsewhere(managing: Any, pods: RunPodServer, api: Api) -> None:
    """A job for any machine: the cheaper community machines are sold out, a secure one is taken."""
    pods.fail("podFindAndDeployOnDemand", refusal("There are no longer any instances available"))
    managed = managing(ladder=[600])
    job = api.submit(entrypoint="echo done", cloud_type="ALL")
    assert ended(api, job)["status"] == "completed"
    assert [pod.given["cloudType"] for pod in pods.created] == ["SECURE"]
    assert any("1x RTX 4090 COMMUNITY cannot be had" in text for text in managed.said)
