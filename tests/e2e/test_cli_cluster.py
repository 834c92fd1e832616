"""`tutelage cluster` with workers as processes of this machine, and what it refuses."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.e2e.command_line import Terminal, running
from tests.served import PATIENCE, Api, Served, served, until
from tests.workers import ended, is_alive, runs, status, word

LONG = "echo id=$PPID; while [ ! -e {go} ]; do sleep 0.05; done"


@pytest.fixture
def server(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Served]:
    """lease: shorter than the time after which a silent worker is replaced."""
    with served(tmp_path / "server", migrated=migrated_sqlite, lease_seconds=5.0, heartbeat_seconds=0.3) as one:
        yield one


@pytest.fixture
def api(server: Served) -> Api:
    return server.api()


def written(folder: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "name": "here",
        "launcher": "local",
        "max_workers": 2,
        "idle_seconds": 0.5,
        "round_seconds": 0.2,
        "hardware": [{"name": "cpu", "secure": 0, "ignore_vram": True}],
    }
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(content | changes), encoding="utf-8")
    return path


def of_workers(api: Api) -> list[dict[str, Any]]:
    return api.ok("GET", "/api/workers")["data"]


def test_workers_come_with_jobs_and_go_after_them(server: Served, api: Api, tmp_path: Path) -> None:
    jobs = [api.submit(entrypoint=f"exit {code}") for code in (0, 3)]
    command = ["cluster", written(tmp_path), "--folder", tmp_path / "kept", "--json"]
    with running(*command, TUTELAGE_URL=server.url) as manager:
        assert [ended(api, job)["status"] for job in jobs] == ["completed", "failed"]
        until(lambda: all(one["stopped_at"] for one in of_workers(api)), "that idle workers end")
        manager.send_signal(signal.SIGINT)
        out, err = manager.communicate(timeout=PATIENCE)
    said = [json.loads(line)["text"] for line in out.splitlines()]
    assert (manager.returncode, err) == (0, ""), said
    assert said[0] == f"cluster 'here' for {server.url} with the launcher local"
    assert said[-1] == "the manager ends; machines go on with their jobs"
    assert sum(": starts, cpu SECURE at $0.00 an hour, for custom-" in text for text in said) == 2
    assert sum(": ends: it was idle for " in text for text in said) == 2
    assert (tmp_path / "kept" / "here" / "history.json").exists()


def test_with_its_manager_killed_a_worker_does_its_job_and_ends(server: Served, api: Api, tmp_path: Path) -> None:
    """The next manager counts it until then: with one place for all, the second job waits for it."""
    first = api.submit(entrypoint=LONG.format(go=tmp_path / "go"))
    file = written(tmp_path, max_workers=1)
    command = ["cluster", file, "--folder", tmp_path / "kept", "--json"]
    with running(*command, TUTELAGE_URL=server.url) as manager:
        process = word(api, first, "id")
        manager.kill()
    second = api.submit()
    with running(*command, TUTELAGE_URL=server.url) as manager:
        assert manager.stdout is not None
        until(
            lambda: "all machines that max_workers allows, 1, are taken" in manager.stdout.readline(), "that it counts"
        )
        assert (status(api, first), status(api, second)) == ("in_progress", "pending")
        (tmp_path / "go").touch()
        assert [ended(api, job)["attempts"] for job in (first, second)] == [1, 1]
        assert not is_alive(process)
        assert len(of_workers(api)) == 2


def test_the_job_of_a_worker_that_is_killed_is_done_by_the_next(server: Served, api: Api, tmp_path: Path) -> None:
    """The guard ends the job's process with its worker; its lease of five seconds passes, and it waits again."""
    job = api.submit(entrypoint=LONG.format(go=tmp_path / "go"))
    command = ["cluster", written(tmp_path, ladder=[1]), "--folder", tmp_path / "kept", "--json"]
    with running(*command, TUTELAGE_URL=server.url) as manager:
        guard = psutil.Process(int(word(api, job, "id")))
        worker = guard.parent()
        assert worker is not None
        worker.kill()
        until(lambda: not guard.is_running(), "that the job ends with its worker")
        (tmp_path / "go").touch()
        assert ended(api, job)["attempts"] == 2
        assert ["was not heard from" in (run["reason"] or "") for run in runs(api, job)] == [True, False]
        manager.terminate()
        out, _ = manager.communicate(timeout=PATIENCE)
    assert "ends: its process has ended with signal 9" in out


def test_a_dry_run_shows_the_plan_and_starts_nothing(
    terminal: Terminal, server: Served, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTELAGE_URL", server.url)
    job = api.submit()
    api.submit(cloud_type="COMMUNITY")
    done = terminal("cluster", written(tmp_path), "--folder", tmp_path / "kept", "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "2 jobs wait; 0 machines are there",
        f"start cpu SECURE at $0.00 an hour for {job['id']}",
        "hold 1 for COMMUNITY no hardware: nothing in the catalogue is what they need, or has a price for their cloud "
        "type",
    ]
    assert of_workers(api) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"launcher": "rya"}, "launcher: there is no 'rya'; did you mean 'ray'?"),
        ({"launcher": "kubernetes"}, "launcher: there is no 'kubernetes'"),
        ({"options": {"address": "here"}}, "options: 'address' is none of the launcher local"),
        ({"hardware": [{"name": "cpu"}]}, "cpu has no price; give 'secure', 'community' or both"),
        ({"hardware": [{"name": "cpu", "secure": 0}] * 2}, "'cpu' is there twice; one line a piece of hardware"),
        ({"max_workers": 0}, "max_workers"),
        ({"max_wokers": 3}, "did you mean 'max_workers'?"),
        ({"name": "Of ours"}, "name"),
    ],
)
def test_what_is_wrong_in_the_file_is_said(
    terminal: Terminal, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    done = terminal("cluster", written(tmp_path, **changes), "--folder", tmp_path / "kept", "--dry-run")
    assert (done.code, done.out) == (2, "")
    assert sentence in " ".join(done.err.split())
    assert not (tmp_path / "kept").exists()


def test_two_managers_of_one_cluster_are_one_too_many(server: Served, tmp_path: Path, terminal: Terminal) -> None:
    command = ["cluster", written(tmp_path), "--folder", tmp_path / "kept", "--json"]
    with running(*command, TUTELAGE_URL=server.url) as manager:
        assert manager.stdout is not None
        assert "cluster 'here'" in manager.stdout.readline()
        done = terminal(*command)
    assert done.code == 2
    assert str(tmp_path / "kept" / "here") in " ".join(done.err.split())


def test_no_server(terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_URL", "http://127.0.0.1:9")
    done = terminal("cluster", written(tmp_path), "--folder", tmp_path / "kept", "--dry-run")
    assert done.code == 3
    assert "http://127.0.0.1:9" in done.err
