"""Jobs on a real Ray: a head and two labelled nodes on this machine, which are killed and started again."""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.test_worker_faults import free_port
from tests.invariant.test_batch_split import assert_same_steps
from tests.managing import PATIENCE, Managed, ended, word
from tests.ray_nodes import RayNodes
from tests.served import Api, Served, served, until
from tests.small_runs import run_small, small_config, trained_weights
from tests.workers import is_alive, log, runs, status
from tutelage import Run
from tutelage.cluster.launchers.protocol import Launcher

SECURE_NODE, COMMUNITY_NODE = "127.0.0.2", "127.0.0.3"
NODES = {SECURE_NODE: "secure", COMMUNITY_NODE: "community"}
WHERE = r"""
import psutil, re

lines = (" ".join(one.cmdline()) for one in psutil.Process().parents())
print("where=" + next(found[1] for line in lines if (found := re.search(r"--node_ip_address=(\S+)", line))))
"""
"""The address of the node is in the command line of a process above the job's."""
LONG = "python where.py; echo id=$$; while [ ! -e {go} ]; do sleep 0.05; done; echo over"


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        there = RayNodes(Path(folder), free_port(), free_port())
        try:
            start(there)
            yield there
        finally:
            there.close()


def start(nodes: RayNodes) -> None:
    nodes.start_head()
    for address, name in NODES.items():
        nodes.start_node(name, address, cloud_type=name.upper(), hardware="cpu")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Served]:
    with served(
        tmp_path_factory.mktemp("server"), migrated=migrated_sqlite, lease_seconds=5.0, heartbeat_seconds=0.3
    ) as running:
        yield running


@pytest.fixture(scope="module")
def api(server: Served) -> Api:
    return server.api()


def submit(api: Api, entrypoint: str, **changes: Any) -> dict[str, Any]:
    return api.submit(entrypoint=entrypoint, mounted_files={"where.py": api.upload(WHERE.encode())["id"]}, **changes)


def manage(server: Served, nodes: RayNodes, folder: Path) -> Managed:
    values: dict[str, Any] = {
        "name": "test",
        "launcher": "ray",
        "max_workers": 4,
        "round_seconds": 0.3,
        "silent_seconds": 8,
        "ladder": [1],
        "hardware": [{"name": "cpu", "secure": 0, "community": 0, "ignore_vram": True}],
        "options": {
            "address": nodes.address,
            "python": sys.executable,
            "runtime_env": {"env_vars": {"XDG_CACHE_HOME": str(folder / "cache")}},
        },
    }
    return Managed(server, folder, values)


@pytest.fixture
def managed(server: Served, nodes: RayNodes, tmp_path: Path) -> Iterator[Managed]:
    with ExitStack() as stack:
        one = manage(server, nodes, tmp_path)
        stack.callback(one.close)
        yield one


def test_jobs_run_where_their_cloud_type_is(managed: Managed, api: Api) -> None:
    """Exit code and log come back, and the machine's token is not among what the job sees."""
    jobs = {
        kind: submit(api, "python where.py; env; exit 3", cloud_type=kind) for kind in ("SECURE", "COMMUNITY", "ALL")
    }
    expected = {"SECURE": {SECURE_NODE}, "COMMUNITY": {COMMUNITY_NODE}, "ALL": {SECURE_NODE, COMMUNITY_NODE}}
    for kind, job in jobs.items():
        found = ended(api, job)
        assert (found["status"], found["reason"], found["attempts"]) == ("failed", "exit code 3", 1)
        assert word(api, job, "where") in expected[kind]
        assert "TUTELAGE_API_KEY=***" in log(api, job)  # its own, which is masked
        assert "tut-" not in log(api, job)


def test_cancel_reaches_the_process(managed: Managed, api: Api, tmp_path: Path) -> None:
    job = submit(api, LONG.format(go=tmp_path / "go"))
    process = word(api, job, "id")
    api.ok("POST", f"/api/jobs/{job['id']}/cancel")
    assert ended(api, job)["status"] == "canceled"
    assert not is_alive(process)
    until(lambda: not managed.launcher.found(), "that Ray has nothing left", PATIENCE)


def with_one_that_waits(api: Api, launcher: Launcher, go: Path, then: Path) -> tuple[list[Any], dict[str, Any]]:
    """Jobs that run until `go` is there, and one in Ray's queue, until `then`. The secure node has two places."""
    running = [submit(api, LONG.format(go=go)) for _ in range(2)]
    for job in running:
        word(api, job, "id")
    waiting = submit(api, LONG.format(go=then))
    until(lambda: waiting["id"] in [one.job_id for one in launcher.found() if one.is_queued], "the third at Ray")
    return running, waiting


def test_what_waits_in_rays_queue_is_taken_out_when_it_is_canceled(managed: Managed, api: Api, tmp_path: Path) -> None:
    launcher = managed.launcher
    running, waiting = with_one_that_waits(api, launcher, tmp_path / "go", tmp_path / "go")
    assert status(api, waiting) == "pending"
    api.ok("POST", f"/api/jobs/{waiting['id']}/cancel")
    until(lambda: waiting["id"] not in [one.job_id for one in launcher.found()], "its end at Ray", PATIENCE)
    (tmp_path / "go").touch()
    assert [ended(api, job)["status"] for job in running] == ["completed"] * 2


def test_what_waited_in_rays_queue_has_all_its_time_to_start(managed: Managed, api: Api, tmp_path: Path) -> None:
    """Ray tells when a job was submitted, which says nothing of how long its worker takes to come up."""
    launcher = managed.launcher
    running, waiting = with_one_that_waits(api, launcher, tmp_path / "go", tmp_path / "then")
    free = time.time()
    (tmp_path / "go").touch()
    placed = until(
        lambda: [one for one in launcher.found() if one.job_id == waiting["id"] and not one.is_queued],
        "a place",
        PATIENCE,
    )
    assert placed[0].started_at > free
    (tmp_path / "then").touch()
    assert [ended(api, job)["status"] for job in (*running, waiting)] == ["completed"] * 3


def test_the_job_of_a_node_that_is_lost_is_done_on_another_one(
    managed: Managed, nodes: RayNodes, api: Api, tmp_path: Path
) -> None:
    job = submit(api, LONG.format(go=tmp_path / "go"), cloud_type="ALL")
    first = word(api, job, "where")
    lost = NODES[first]
    nodes.kill(lost)
    try:
        until(lambda: len(runs(api, job)) == 2, "the second attempt", PATIENCE)
        second = word(api, job, "where")
        assert {first, second} == set(NODES)
        (tmp_path / "go").touch()
        found = ended(api, job)
        assert (found["status"], found["attempts"]) == ("completed", 2)
        assert "was not heard from" in runs(api, job)[0]["reason"]
    finally:
        nodes.start_node(lost, first, cloud_type=lost.upper(), hardware="cpu")


def test_a_head_that_is_started_again_loses_no_job(managed: Managed, nodes: RayNodes, api: Api, tmp_path: Path) -> None:
    """Nothing of Ray is left, as without a store for its head's memory: what ran is run again, what waited waits."""
    running = submit(api, LONG.format(go=tmp_path / "go"))
    word(api, running, "id")
    nodes.close()
    waiting = submit(api, "echo over")
    until(
        lambda: any("does not answer as it should" in text for text in managed.said),
        "that the manager misses Ray",
        PATIENCE,
    )
    start(nodes)
    (tmp_path / "go").touch()
    assert [ended(api, job)["status"] for job in (running, waiting)] == ["completed"] * 2
    assert ended(api, running)["attempts"] == 2
    assert "both answer again" in managed.said


def test_a_manager_after_another_finds_what_that_one_started(
    server: Served, nodes: RayNodes, api: Api, tmp_path: Path
) -> None:
    first = manage(server, nodes, tmp_path)
    job = submit(api, LONG.format(go=tmp_path / "go"))
    word(api, job, "id")
    first.stop()
    second = manage(server, nodes, tmp_path)
    try:
        until(lambda: [one.job_id for one in second.launcher.found()] == [job["id"]], "the machine")
        (tmp_path / "go").touch()
        assert ended(api, job)["attempts"] == 1
        until(lambda: not second.launcher.found(), "that Ray has nothing left", PATIENCE)
        until(lambda: not second.names_of_tokens(), "that the machine's token is revoked")
    finally:
        second.close()


def test_two_processes_train_over_ray_what_one_trains_here(managed: Managed, api: Api, tmp_path: Path) -> None:
    """Over gloo, with the same tolerance as two processes without a queue: see `tests/invariant/test_processes.py`."""
    one = run_small(tmp_path, "one")
    one_step_less = run_small(tmp_path, "one-step", max_steps=1)
    config = small_config(tmp_path, "two", per_device_train_batch_size=4).flat() | {"output_dir": "uploads/two"}
    mounted = {"run.yaml": api.upload(yaml.safe_dump(config).encode())["id"]}
    launched = "python -m torch.distributed.run --standalone --nproc-per-node 2 -m tutelage train run.yaml"
    settings = "ACCELERATE_USE_CPU=true GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=1"
    job = api.submit(entrypoint=f"{settings} {launched}", mounted_files=mounted)
    assert ended(api, job)["status"] == "completed", log(api, job)
    managed.client.jobs.retrieve(job["id"]).download(tmp_path / "fetched")
    (folder,) = (tmp_path / "fetched").rglob("two")
    assert_same_steps(trained_weights(one), trained_weights(Run.open(folder)), trained_weights(one_step_less))
