"""`tutelage serve`, `backup`, `restore` and `worker` as processes of their own."""

import contextlib
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.command_line import COMMAND, ENVIRONMENT, Finished, Terminal, line_of, running
from tests.served import PATIENCE, Api, Served, until


def answers(api: Api) -> bool:
    try:
        return api("GET", "/api/me").status_code == 200
    except httpx.ConnectError:
        return False


@contextlib.contextmanager
def serving(home: Path) -> Iterator[Api]:
    """`tutelage serve --json` without a worker; it ends in order."""
    with running("serve", "--home", home, "--port", 0, "--no-worker", "--json") as server:
        first = json.loads(line_of(server.stdout))
        assert set(first) == {"time", "text"}
        assert first["text"].endswith(f" with everything in {home}")
        api = Api(first["text"].split()[2])
        until(lambda: answers(api), "the server's start")
        yield api
        api.close()
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=PATIENCE)
    assert (server.returncode, err) == (0, "")
    assert [json.loads(line)["text"] for line in out.splitlines()] == [
        "stopping: waiting for open connections",
        "stopped",
    ]


def answer(done: Finished) -> Any:
    assert (done.code, done.err) == (0, ""), done
    return json.loads(done.out)


def test_a_backup_while_the_server_runs_and_back(terminal: Terminal, tmp_path: Path) -> None:
    home, archive, new_home = tmp_path / "home", tmp_path / "monday.tar", tmp_path / "new"
    with serving(home) as api:
        file = api.upload(b"kept\n", "result", "kept.txt")["id"]
        jobs = [api.submit()["id"] for _ in range(3)]
        api.ok("PUT", "/api/secrets/HF_TOKEN", {"value": "hf-secret"})
        done = answer(terminal("backup", archive, "--home", home, "--json"))
        assert (done["archive"], done["contents"], done["bytes"], done["missing"]) == (str(archive), 1, 5, 0)
        api.submit()  # behind the moment of the backup
    again = terminal("backup", archive, "--home", home)
    assert (again.code, again.out) == (2, "")
    assert again.err.startswith(f"error: {archive}: is there already; ")
    text = terminal("backup", tmp_path / "later.tar", "--home", home)
    rows = done["rows"] + 1
    assert text.out.splitlines() == [
        f"{tmp_path / 'later.tar'}: {rows} records, 1 file of 5 bytes",
        "it holds the key of the secrets: keep it where nobody else can read it",
    ]

    restored = answer(terminal("restore", archive, "--home", new_home, "--json"))
    assert restored == {"home": str(new_home), "rows": done["rows"], "contents": 1, "bytes": 5, "missing": 0}
    with serving(new_home) as api:
        assert [job["id"] for job in api.ok("GET", "/api/jobs")["data"]] == jobs[::-1]
        assert api("GET", f"/v1/files/{file}/content").content == b"kept\n"
        run = api.running(api.ok("GET", f"/api/jobs/{jobs[0]}"))
        assert run.answer["environment"] == {"HF_TOKEN": "hf-secret"}
    full = terminal("restore", archive, "--home", new_home)
    assert (full.code, full.out) == (2, "")
    assert "there are records in it already" in full.err


def test_contents_that_are_gone_are_said(terminal: Terminal, own_server: Served, tmp_path: Path) -> None:
    api, home = own_server.api(), own_server.services.settings.home
    api.upload(b"kept\n", "result", "kept.txt")
    api.upload(b"lost\n", "result", "lost.txt")
    next(path for path in (home / "files").rglob("*") if path.is_file() and path.read_bytes() == b"lost\n").unlink()
    done = terminal("backup", tmp_path / "archive.tar", "--home", home)
    assert done.code == 0
    said = done.out.splitlines()[0]
    assert said.endswith(" records, 1 file of 5 bytes; 1 file in the records and gone from the store")
    found = answer(terminal("backup", tmp_path / "again.tar", "--home", home, "--json"))
    assert (found["contents"], found["missing"]) == (1, 1)


def test_homes_and_archives_that_are_none(terminal: Terminal, tmp_path: Path) -> None:
    none = terminal("backup", tmp_path / "archive.tar", "--home", tmp_path / "none")
    assert (none.code, none.out) == (2, "")
    assert none.err.startswith(f"error: {tmp_path / 'none'}: there is no ")
    missing = terminal("restore", tmp_path / "none.tar", "--home", tmp_path / "new")
    assert (missing.code, missing.out) == (2, "")
    assert missing.err.startswith(f"error: {tmp_path / 'none.tar'}: ")
    (tmp_path / "text.tar").write_text("no archive")
    wrong = terminal("restore", tmp_path / "text.tar", "--home", tmp_path / "newer")
    assert (wrong.code, wrong.out) == (2, "")


def test_a_port_that_is_taken(terminal: Terminal, own_server: Served, tmp_path: Path) -> None:
    done = terminal("serve", "--home", tmp_path / "other", "--port", own_server.port, "--no-worker")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: 127.0.0.1:{own_server.port}: cannot listen there ")
    opened = terminal("serve", "--home", tmp_path / "other", "--port", 0, "--host", "0.0.0.0")
    assert (opened.code, opened.out) == (2, "")
    assert "token" in opened.err


@pytest.fixture
def work(own_server: Served, tmp_path: Path) -> Callable[..., Finished]:
    """`tutelage worker` in a process, in the folder `work`, until it ends."""

    def call(*options: str) -> Finished:
        command = [*COMMAND, "worker", "--folder", str(tmp_path / "work"), *options]
        environment = ENVIRONMENT | {"TUTELAGE_URL": own_server.url}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
        return Finished(done.returncode, done.stdout, done.stderr)

    return call


def test_a_worker_for_one_job(work: Callable[..., Finished], own_server: Served, tmp_path: Path) -> None:
    """Of two jobs it does the older one, as what it says it is, and leaves the folder where --keep-runs says."""
    api = own_server.api()
    job = api.submit(entrypoint="echo there > left.txt", requires_vram_gb=70, image="ours", cloud_type="COMMUNITY")
    later = api.submit()
    flags = ("--once", "--name", "mine", "--image", "ours", "--cloud-type", "COMMUNITY", "--cost-per-hour", "1.5")
    done = work(*flags, "--ignore-vram", "--keep-runs")
    assert done.code == 0, done
    assert "'mine'" in done.out.splitlines()[0]
    assert done.out.splitlines()[-1] == "the worker ends: it was started for one job"
    assert api.ok("GET", f"/api/jobs/{job['id']}")["status"] == "completed"
    assert api.ok("GET", f"/api/jobs/{later['id']}")["status"] == "pending"
    worker = api.ok("GET", "/api/workers")["data"][0]
    said = {name: worker[name] for name in ("name", "images", "cloud_type", "cost_per_hour")}
    assert said == {"name": "mine", "images": ["ours"], "cloud_type": "COMMUNITY", "cost_per_hour": 1.5}
    assert [path.read_text() for path in (tmp_path / "work" / "kept").rglob("left.txt")] == ["there\n"]


def test_a_worker_that_is_idle_says_so_as_json(
    work: Callable[..., Finished], own_server: Served, tmp_path: Path
) -> None:
    """Without --ignore-vram it leaves what its machine is too small for; without --keep-runs nothing of what it did."""
    api = own_server.api()
    large = api.submit(requires_vram_gb=1e5)
    small = api.submit(entrypoint="echo there > left.txt")
    done = work("--max-idle", "0.2", "--name", "idle", "--json")
    assert done.code == 0, done
    said = [json.loads(line)["text"] for line in done.out.splitlines()]
    assert said[0].split()[1] == "'idle'"
    assert said[-2:] == [f"{small['id']}: completed", "the worker ends: it had no job for longer than --max-idle"]
    assert api.ok("GET", f"/api/jobs/{large['id']}")["status"] == "pending"
    assert list((tmp_path / "work").rglob("left.txt")) == []


def test_a_worker_ends_with_its_input(own_server: Served, tmp_path: Path) -> None:
    arguments = ("worker", "--folder", tmp_path / "work", "--while-input-open")
    with running(*arguments, TUTELAGE_URL=own_server.url) as worker:
        assert " takes jobs of " in line_of(worker.stdout)
        out, _ = worker.communicate("", timeout=PATIENCE)
    assert worker.returncode == 0
    assert out.splitlines()[-1] == "the worker ends: the process that started it has ended"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--cloud-type", "ALL"), "ALL"),
        (("--max-idle", "-1"), "--max-idle"),
        (("--cost-per-hour", "-1"), "--cost-per-hour"),
    ],
)
def test_what_no_worker_is(terminal: Terminal, options: tuple[str, ...], sentence: str) -> None:
    done = terminal("worker", *options)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err


def test_a_worker_whose_token_may_not(own_server: Served, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_URL", own_server.url)
    monkeypatch.setenv("TUTELAGE_API_KEY", "tut-wrong")
    done = terminal("worker", "--once")
    assert (done.code, done.out) == (2, "")
    assert "token" in done.err
    until(lambda: own_server.api().ok("GET", "/api/workers")["data"] == [], "no worker")
