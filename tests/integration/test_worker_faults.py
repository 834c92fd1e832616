"""Workers, servers and the network between them fail while jobs run: nothing runs twice, nothing is lost."""

import os
import random
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.served import Api, Process, Served, until
from tests.workers import (
    FAST,
    WorkerProcess,
    api,
    ended,
    events,
    is_alive,
    log,
    runs,
    server,
    status,
    word,
    worker_process,
    working,
)

__all__ = ["api", "server", "worker_process"]


RUNNING = "echo id=$$; exec sleep 600"
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(1, f"daemon={os.getpid()}\\n".encode())
        time.sleep(600)
    os._exit(0)
time.sleep(600)
"""
Start = Callable[..., WorkerProcess]


def free_port() -> int:
    """Below those that a system gives to who asks for any: what listens later, in another process, is not given it."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def writing_lines(folder: Path) -> str:
    """A job that writes its run's id into a file again and again, until `go` is there."""
    return f"while [ ! -e {folder}/go ]; do echo $TUTELAGE_RUN_ID >> {folder}/lines; sleep 0.002; done; echo over"


def written(folder: Path) -> list[str]:
    """The runs that wrote lines, one after the other: each once, unless two wrote at the same time."""
    lines = (folder / "lines").read_text().split() if (folder / "lines").exists() else []
    return [line for number, line in enumerate(lines) if number == 0 or line != lines[number - 1]]


def test_a_killed_worker_takes_its_job_along(server: Served, api: Api, worker_process: Start, tmp_path: Path) -> None:
    """With a daemon that has left group and session; another worker does the job, and clears the folder up."""
    script = api.upload(DAEMON.encode())["id"]
    entrypoint = f"if [ -e {tmp_path}/go ]; then echo over; else python main.py; fi"
    job = api.submit(entrypoint=entrypoint, mounted_files={"main.py": script})
    first = worker_process(server.url, tmp_path / "worker")
    daemon = word(api, job, "daemon")
    first.kill()
    until(lambda: not is_alive(daemon), "the daemon's end", patience=1.0)
    (tmp_path / "go").touch()
    with working(server.url, tmp_path / "worker"):
        assert ended(api, job)["status"] == "completed"
    assert [run["status"] for run in runs(api, job)] == ["failed", "completed"]
    assert "was not heard from" in runs(api, job)[0]["reason"]
    assert log(api, job) == "over\n"
    assert list((tmp_path / "worker/runs").iterdir()) == []


def test_attempts_are_capped(server: Served, api: Api, worker_process: Start, tmp_path: Path) -> None:
    """A job that kills its worker: three times."""
    job = api.submit(entrypoint=f"kill -9 $(cat {tmp_path}/pid); sleep 600")
    started = []
    for _ in range(3):
        (tmp_path / "pid").unlink(missing_ok=True)
        started.append(worker_process(server.url, tmp_path / "worker"))
        (tmp_path / "pid").write_text(str(started[-1].process.pid), encoding="utf-8")
        started[-1].process.wait(30)
        until(lambda: status(api, job) != "in_progress", "the end of the lease")
    found = ended(api, job)
    assert (found["status"], found["attempts"]) == ("failed", 3)
    assert "attempt 3" in found["reason"]


def test_a_late_worker_is_fenced_and_its_process_gone(
    server: Served, api: Api, worker_process: Start, tmp_path: Path
) -> None:
    """A worker that stands still for longer than its lease: by the time another one has the job, nothing of the first
    one's process is left. Back again it hears that, and takes the next job."""
    job = api.submit(entrypoint=writing_lines(tmp_path))
    late = worker_process(server.url, tmp_path / "late")
    until(lambda: written(tmp_path), "the first line")
    late.signal(signal.SIGSTOP)
    until(lambda: status(api, job) == "pending", "the end of the lease")
    with working(server.url, tmp_path / "other", once=True) as other:
        until(lambda: len(written(tmp_path)) == 2, "a line of the second run")
        late.signal(signal.SIGCONT)
        until(lambda: "gave it up" in late.output, "that it is fenced")
        assert status(api, job) == "in_progress"
        (tmp_path / "go").touch()
        other.ended()
    assert ended(api, job)["status"] == "completed"
    assert written(tmp_path) == [run["id"] for run in runs(api, job)]
    assert log(api, job) == "over\n"
    following = api.submit(entrypoint="true")
    assert ended(api, following)["worker_id"] != ended(api, job)["worker_id"]


def test_a_worker_without_its_server_stops_the_process_in_time(
    processes: Callable[..., Process], tmp_path: Path
) -> None:
    """The server does not answer, as behind a network that drops everything. It must be free to give the job to
    somebody else when the lease is over: before, the process is dead. When the server is back, the job is done once
    more."""
    process = processes(tmp_path / "home", **FAST)
    api = process.api()
    job = api.submit(entrypoint=writing_lines(tmp_path))
    with working(process.url, tmp_path / "worker") as running:
        until(lambda: written(tmp_path), "the first line")
        pid = next(
            int(path.parts[2])
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if b"while [ ! -e " + os.fsencode(tmp_path) in path.read_bytes() and b"guard.py" not in path.read_bytes()
        )
        process.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        until(lambda: not is_alive(pid), "the process' end", patience=5.0)
        assert time.monotonic() - began < FAST["lease_seconds"]
        process.process.send_signal(signal.SIGCONT)
        until(lambda: len(written(tmp_path)) == 2, "a line of the second run")
        (tmp_path / "go").touch()
        assert ended(api, job)["status"] == "completed"
    assert written(tmp_path) == [run["id"] for run in runs(api, job)]
    assert not [line for line in running.said if "error" in line]


def test_a_server_that_is_killed_and_comes_back(processes: Callable[..., Process], tmp_path: Path) -> None:
    """500 numbered lines and 20 files, the server killed twice meanwhile: all of them once, in order."""
    options = {"port": free_port(), "lease_seconds": 20.0, "heartbeat_seconds": 0.1}
    process = processes(tmp_path / "home", **options)
    lines = "for i in $(seq 500); do echo line $i; sleep 0.002; done"
    files = "for i in $(seq 20); do echo $i > uploads/$i.txt; done"
    wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"
    job = process.api().submit(entrypoint=f"{lines}; {files}; {wait}")
    with working(process.url, tmp_path / "worker") as running:
        until(lambda: "line 100\n" in log(process.api(), job), "line 100")
        process.kill()
        process = processes(tmp_path / "home", **options)
        until(lambda: "line 500\n" in log(process.api(), job), "the last line")
        (tmp_path / "go").touch()
        until(lambda: events(process.api(), job), "the first file")
        process.kill()
        process = processes(tmp_path / "home", **options)
        api = process.api()
        assert ended(api, job)["status"] == "completed"
        assert log(api, job) == "".join(f"line {number}\n" for number in range(1, 501))
        assert sorted(event["path"] for event in events(api, job)) == sorted(f"{number}.txt" for number in range(1, 21))
        assert len(runs(api, job)) == 1
        told = [line for line in running.said if "trying again" in line or "is back" in line]
        assert ["trying again" in line for line in told] == [True, False] * (len(told) // 2)


def test_a_worker_that_waits_for_its_server(processes: Callable[..., Process], tmp_path: Path) -> None:
    """Says once that none is there, and once that it is back; then it works."""
    port = free_port()
    with working(f"http://127.0.0.1:{port}", tmp_path / "worker") as running:
        until(lambda: running.said, "a sentence")
        process = processes(tmp_path / "home", port=port)
        api = process.api()
        assert ended(api, api.submit(entrypoint="true"))["status"] == "completed"
        assert "no server answers there" in running.said[0]
        assert "the server is back" in running.said[1]
        assert len([line for line in running.said if "trying again" in line]) == 1


def test_a_stopped_worker_gives_its_job_back(server: Served, api: Api, worker_process: Start, tmp_path: Path) -> None:
    """SIGTERM: the process is gone, the job waits as if it had never begun, and another worker does it."""
    job = api.submit(entrypoint=f"[ -e {tmp_path}/go ] || {{ {RUNNING}; }}")
    process = worker_process(server.url, tmp_path / "worker")
    pid = word(api, job, "id")
    code, seconds = process.terminate()
    assert (code, seconds < 8) == (0, True), process.output
    assert not is_alive(pid)
    waiting = api.ok("GET", f"/api/jobs/{job['id']}")
    assert (waiting["status"], waiting["attempts"], waiting["reason"]) == ("pending", 0, "its worker was stopped")
    assert "waiting up to 1 s for the process" in process.output
    (tmp_path / "go").touch()
    with working(server.url, tmp_path / "worker", once=True) as running:
        running.ended()
    assert status(api, job) == "completed"


def test_an_idle_worker_stops_at_once(server: Served, api: Api, worker_process: Start, tmp_path: Path) -> None:
    """In the middle of a claim that waits for 25 s; a job that comes right then is not taken."""
    process = worker_process(server.url, tmp_path / "worker")
    code, seconds = process.terminate()
    assert (code, seconds < 3) == (0, True), process.output
    job = api.submit(entrypoint="true")
    identity = process.output.split(" ", 1)[0]
    stopped = next(one for one in api.ok("GET", "/api/workers")["data"] if one["id"] == identity)
    assert (stopped["status"], stopped["reason"]) == ("stopped", "it was sent SIGTERM")
    assert (status(api, job), runs(api, job)) == ("pending", [])
    api.ok("POST", f"/api/jobs/{job['id']}/cancel")


def test_a_second_signal_ends_it_at_once(server: Served, api: Api, worker_process: Start, tmp_path: Path) -> None:
    """A process that ignores SIGTERM, and a minute of grace for it."""
    job = api.submit(entrypoint="trap '' TERM; echo id=$$; while :; do sleep 0.01; done")
    process = worker_process(server.url, tmp_path / "worker", grace=60.0)
    pid = word(api, job, "id")
    process.signal(signal.SIGINT)
    until(lambda: "waiting up to 60 s" in process.output, "what it waits for")
    began = time.monotonic()
    process.signal(signal.SIGINT)
    assert process.process.wait(30) == 128 + signal.SIGINT
    until(lambda: not is_alive(pid), "the process' end")
    assert time.monotonic() - began < 3
    api.ok("POST", f"/api/jobs/{job['id']}/cancel")
    ended(api, job, "canceled")


def test_stopping_while_the_server_is_away(
    processes: Callable[..., Process], tmp_path: Path, worker_process: Start
) -> None:
    """It does not wait for the server; the job comes back when the lease is over."""
    process = processes(tmp_path / "home", lease_seconds=20.0)
    job = process.api().submit(entrypoint=RUNNING)
    worker = worker_process(process.url, tmp_path / "worker")
    pid = word(process.api(), job, "id")
    process.kill()
    code, seconds = worker.terminate()
    assert (code, seconds < 15) == (0, True), worker.output
    assert not is_alive(pid)
    assert "could not be told" in worker.output or "was not told" in worker.output


def test_a_worker_whose_parent_is_gone_ends_when_its_job_has(
    server: Served, api: Api, worker_process: Start, tmp_path: Path
) -> None:
    """As one beside a server that is killed: the job goes on, the next one is for somebody else."""
    job = api.submit(entrypoint=f"echo id=$$; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done")
    busy = worker_process(server.url, tmp_path / "worker", while_input_open=True)
    pid = word(api, job, "id")
    idle = worker_process(server.url, tmp_path / "worker", while_input_open=True)
    for one in (busy, idle):
        one.close_input()
    assert idle.process.wait(30) == 0
    following = api.submit(entrypoint="true")
    assert is_alive(pid)
    (tmp_path / "go").touch()
    assert busy.process.wait(30) == 0
    assert "the process that started it has ended" in busy.output
    assert (ended(api, job)["status"], status(api, following)) == ("completed", "pending")
    api.ok("POST", f"/api/jobs/{following['id']}/cancel")
