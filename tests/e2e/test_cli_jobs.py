"""`tutelage jobs`: looking at jobs and changing them. Whoever runs them is played by the test: nothing waits."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command_line import Finished, Terminal, line_of, running
from tests.served import PATIENCE, Api, Served

Record = dict[str, Any]


@pytest.fixture
def api(open_server: Served) -> Api:
    return open_server.api()


@pytest.fixture
def shell(terminal: Terminal, open_server: Served, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """The command line of whoever uses that server. Its folder is the test's."""
    monkeypatch.setenv("TUTELAGE_URL", open_server.url)
    return terminal


def answer(done: Finished) -> Any:
    """The one JSON document that a command printed, without a word beside it."""
    assert (done.code, done.err) == (0, ""), done
    return json.loads(done.out)


@pytest.fixture
def ended(api: Api) -> Record:
    """A job that printed, reported and left a file, and completed."""
    job = api.submit()
    run = api.running(job)
    api.print(run.run_id, 0, "first line\nzweite, 🙂\n".encode())
    file = api.upload(b"kept\n", "result", "kept.txt")
    api.report(run.run_id, {"loss": 0.5}, {"loss": 0.25, "tag": "train"})
    api.report(run.run_id, {"file": file["id"], "path": "kept.txt"}, file=file["id"])
    return api.finish(run.run_id)


def test_a_list_and_its_filters(shell: Terminal, api: Api) -> None:
    words = [f"word{number}x{api.submit()['id'][-6:]}" for number in range(2)]
    first, second = (api.submit(params={"note": word}) for word in words)
    api.ok("POST", f"/api/jobs/{second['id']}/cancel", {})

    found = answer(shell("jobs", "ls", "--limit", 2, "--json"))
    assert [job["id"] for job in found] == [second["id"], first["id"]]
    assert [job["status"] for job in found] == ["canceled", "pending"]
    assert [job["id"] for job in answer(shell("jobs", "ls", "--search", words[0], "--json"))] == [first["id"]]
    assert answer(shell("jobs", "ls", "--search", words[0], "--status", "canceled", "--json")) == []
    assert answer(shell("jobs", "ls", "--kind", "inference", "--json")) == []

    table = shell("jobs", "ls", "--search", words[1], "--status", "canceled", "--kind", "custom")
    assert [line.split()[:3] for line in table.out.splitlines()] == [
        ["job", "status", "kind"],
        [second["id"], "canceled", "custom"],
    ]
    assert shell("jobs", "ls", "--kind", "inference").out == "no such jobs\n"
    for api_job in (first, *api.ok("GET", "/api/jobs", params={"status": "pending"})["data"]):
        api.ok("POST", f"/api/jobs/{api_job['id']}/cancel", {})  # for whoever plays the next worker


def test_a_job_with_its_runs_and_outputs(shell: Terminal, ended: Record) -> None:
    shown = answer(shell("jobs", "show", ended["id"], "--json"))
    assert shown["job"]["outputs"]["loss"] == 0.25
    assert [(run["job_id"], run["status"]) for run in shown["runs"]] == [(ended["id"], "completed")]
    text = shell("jobs", "show", ended["id"]).out
    lines = [line.split() for line in text.splitlines()]
    for line in ("status completed", "command true", "attempts 1 of 3", "needs a SECURE machine"):
        assert line.split() in lines
    assert "  loss: 0.25\n" in text.partition("\noutputs\n")[2]


def test_what_it_printed(shell: Terminal, ended: Record, api: Api) -> None:
    printed = "first line\nzweite, 🙂\n"
    plain = shell("jobs", "logs", ended["id"])
    assert (plain.code, plain.out, plain.err) == (0, printed, "")
    log = answer(shell("jobs", "logs", ended["id"], "--json"))
    run = api.ok("GET", "/api/runs", params={"job_id": ended["id"]})["data"][0]
    assert log == {"run_id": run["id"], "log": printed}
    assert shell("jobs", "logs", "-f", ended["id"]).out == printed
    followed = shell("jobs", "logs", "--follow", "--json", ended["id"])
    assert "".join(json.loads(line)["text"] for line in followed.out.splitlines()) == printed

    waiting = api.submit()
    assert answer(shell("jobs", "logs", waiting["id"], "--json")) == {"run_id": None, "log": ""}
    api.ok("POST", f"/api/jobs/{waiting['id']}/cancel", {})


def test_a_log_is_followed_until_its_job_ends(api: Api, open_server: Served) -> None:
    """The end is printed only once the beginning was read."""
    run = api.running()
    end = api.print(run.run_id, 0, b"begin\n")
    with running("jobs", "logs", "-f", run.job_id, TUTELAGE_URL=open_server.url) as follows:
        assert line_of(follows.stdout) == "begin\n"
        api.print(run.run_id, end, b"end\n")
        api.finish(run.run_id, "failed", exit_code=3, reason="exit code 3")
        assert follows.communicate(timeout=PATIENCE) == ("end\n", "")
    assert follows.returncode == 0


def test_ctrl_c_leaves_the_job_that_is_followed(api: Api, open_server: Served) -> None:
    run = api.running()
    api.print(run.run_id, 0, b"begin\n")
    with running("jobs", "logs", "-f", run.job_id, TUTELAGE_URL=open_server.url) as follows:
        assert line_of(follows.stdout) == "begin\n"
        follows.send_signal(signal.SIGINT)
        _, said = follows.communicate(timeout=PATIENCE)
    assert follows.returncode == 130
    assert said == (
        f"error: {run.job_id}: goes on; see: tutelage jobs logs -f {run.job_id}; "
        f"end it with: tutelage jobs cancel {run.job_id}\n"
    )
    assert api.finish(run.run_id)["status"] == "completed"


def test_canceled_and_restarted(shell: Terminal, api: Api) -> None:
    jobs = [api.submit()["id"] for _ in range(2)]
    done = shell("jobs", "cancel", *jobs)
    assert (done.code, done.out) == (0, f"{jobs[0]}: canceled\n{jobs[1]}: canceled\n")
    again = answer(shell("jobs", "restart", *jobs, "--json"))
    assert [(job["id"], job["status"]) for job in again] == [(job, "pending") for job in jobs]
    assert [job["status"] for job in answer(shell("jobs", "cancel", *jobs, "--json"))] == ["canceled", "canceled"]
    assert shell("jobs", "restart", jobs[0]).out == f"{jobs[0]}: pending\n"
    assert shell("jobs", "cancel", jobs[0]).code == 0


def test_what_has_completed_cannot_be_canceled(shell: Terminal, ended: Record) -> None:
    done = shell("jobs", "cancel", ended["id"])
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {ended['id']}: ")
    assert "completed" in done.err


def test_why_a_job_waits(shell: Terminal, api: Api) -> None:
    api.worker("small", ignore_vram=False, vram_gb=8, gpus=1, hardware="1x T4", cloud_type="COMMUNITY")
    job = api.submit(requires_vram_gb=70, allowed_hardware=["1x H100"])
    found = answer(shell("jobs", "explain", job["id"], "--json"))
    assert (found["job_id"], found["status"]) == (job["id"], "pending")
    small = next(worker for worker in found["workers"] if worker["name"] == "small")
    assert small["fits"] is False
    text = shell("jobs", "explain", job["id"]).out
    assert text.startswith(f"{job['id']}: pending: {found['summary']}\n")
    row = next(line for line in text.splitlines() if line.startswith("small"))
    assert row.split()[1] == "no"
    assert all(reason in row for reason in small["reasons"])
    assert any("70" in reason for reason in small["reasons"])
    api.ok("POST", f"/api/jobs/{job['id']}/cancel", {})


def test_what_it_left_is_fetched(
    shell: Terminal, ended: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = answer(shell("jobs", "fetch", ended["id"], "--json"))
    assert sorted(Path(path).relative_to(ended["id"]).as_posix() for path in paths) == sorted(
        path.relative_to(tmp_path / ended["id"]).as_posix()
        for path in (tmp_path / ended["id"]).rglob("*")
        if path.is_file()
    )
    assert (tmp_path / ended["id"] / "kept.txt").read_bytes() == b"kept\n"
    done = shell("jobs", "fetch", ended["id"], "--output", "got", "--all-runs")
    assert (done.code, done.out) == (0, f"got: {len(paths)} files\n")
    assert [path.read_bytes() for path in (tmp_path / "got").rglob("kept.txt")] == [b"kept\n"]


@pytest.mark.parametrize("name", ["show", "logs", "cancel", "restart", "explain", "fetch"])
def test_a_job_that_is_not_there(shell: Terminal, name: str) -> None:
    done = shell("jobs", name, "nojob-0123456789ab")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: nojob-0123456789ab: ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        (
            "--status",
            "cancelled",
            "is none; did you mean 'canceled'?; one of pending, in_progress, completed, failed, ",
        ),
        ("--kind", "inferrenze", "is none; did you mean 'inference'?; one of fine_tuning, weighted_sft, inference, "),
    ],
)
def test_a_filter_that_is_none(shell: Terminal, option: str, value: str, sentence: str) -> None:
    done = shell("jobs", "ls", option, value)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {option} {value}: {sentence}")


def test_a_kind_with_a_hyphen(shell: Terminal) -> None:
    assert shell("jobs", "ls", "--kind", "fine-tuning").out == "no such jobs\n"
