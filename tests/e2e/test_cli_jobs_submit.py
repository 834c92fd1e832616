"""Submitting by the shell: every kind of job, commands with a worker that runs them, exit codes of waiting."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.command_line import Finished, Terminal, line_of, running
from tests.served import PATIENCE, Api, Served, conversation, jsonl, served
from tests.workers import ended as ended_job
from tests.workers import working

Record = dict[str, Any]
CHOICES = {"question": "1 + 1?", "choices": ["1", "2"], "answer": 1}


@pytest.fixture
def shell(terminal: Terminal, open_server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """The command line of whoever uses that server, in a folder of the test."""
    monkeypatch.setenv("TUTELAGE_URL", open_server.url)
    monkeypatch.chdir(tmp_path)
    return terminal


@pytest.fixture
def api(open_server: Served) -> Api:
    return open_server.api()


def answer(done: Finished, code: int = 0) -> Any:
    """The one JSON document that a command printed to standard output."""
    assert done.code == code, done
    return json.loads(done.out)


def options_file(folder: Path, name: str = "options.yaml", **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return path


def content_of(api: Api, file: str) -> bytes:
    return api("GET", f"/v1/files/{file}/content").content


def test_inference_of_a_file_beside_its_options(shell: Terminal, api: Api, tmp_path: Path) -> None:
    """Files in the YAML file are seen from its folder, as for `tutelage train`; those of --set from here."""
    config = options_file(tmp_path / "there", model="org/Model-4B", input_file_id="rows.jsonl", max_tokens=7)
    rows = jsonl([conversation(4)])
    (tmp_path / "there" / "rows.jsonl").write_bytes(rows)
    done = shell("jobs", "submit", config, "--kind", "inference", "--set", "temperature=0", "--cloud-type", "ALL")
    job_id = done.out.partition(":")[0]
    assert (done.code, done.out) == (0, f"{job_id}: pending\n")
    assert done.err == f"see its log with: tutelage jobs logs -f {job_id}\n"
    job = api.ok("GET", f"/api/jobs/{job_id}")
    assert (job["kind"], job["model"], job["cloud_type"]) == ("inference", "org/Model-4B", "ALL")
    assert job["requires_vram_gb"] == 23  # as the SDK guesses: two bytes of each of four billion, and 15
    assert (job["params"]["max_tokens"], job["params"]["temperature"]) == (7, 0)
    assert content_of(api, job["params"]["input_file_id"]) == rows

    other = jsonl([conversation(5)])
    (tmp_path / "here.jsonl").write_bytes(other)
    again = answer(
        shell("jobs", "submit", config, "--kind", "inference", "--set", "input_file_id=here.jsonl", "--json")
    )
    assert content_of(api, again["params"]["input_file_id"]) == other
    by_id = answer(
        shell("jobs", "submit", config, "--kind", "inference", "--json", "--set", "temperature=0",
              "--set", f"input_file_id={job['params']['input_file_id']}")
    )  # fmt: skip
    assert by_id["id"] == job_id  # the same job, now that its file is named by its id


@pytest.mark.parametrize(
    ("kind", "option", "row", "prefix"),
    [
        ("logprob", "dataset", conversation(1), "lpjob"),
        ("multiple_choice", "dataset", CHOICES, "mcjob"),
        ("fine_tuning", "training_file", conversation(1), "ftjob"),
        ("weighted-sft", "training_file", conversation(1), "sftjob"),
    ],
)
def test_kinds_that_read_a_file(
    shell: Terminal, api: Api, tmp_path: Path, kind: str, option: str, row: Record, prefix: str
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(jsonl([row]))
    config = options_file(tmp_path, model="org/Model-1B", **{option: "rows.jsonl"})
    job = answer(shell("jobs", "submit", config, "--kind", kind, "--requires-vram-gb", 3, "--json"))
    assert (job["kind"], job["requires_vram_gb"]) == (kind.replace("-", "_"), 3)
    assert job["id"].startswith(f"{prefix}-")
    assert content_of(api, job["params"][option]) == jsonl([row])


def test_weighted_sft_keeps_its_own_default(shell: Terminal, tmp_path: Path) -> None:
    """It evaluates as often as it logs, unless told otherwise, as `client.weighted_sft` does."""
    (tmp_path / "rows.jsonl").write_bytes(jsonl([conversation(1)]))
    config = options_file(tmp_path, model="org/M", training_file="rows.jsonl", logging_steps=3)
    command = ("jobs", "submit", config, "--kind", "weighted_sft", "--json")
    assert answer(shell(*command))["params"]["eval_every_n_steps"] == 3
    assert answer(shell(*command, "--set", "eval_every_n_steps=5"))["params"]["eval_every_n_steps"] == 5


def test_kinds_that_read_none(shell: Terminal) -> None:
    inspect = answer(
        shell("jobs", "submit", "--kind", "inspect_ai", "--set", "model=org/M-1B", "--set", "eval_name=x/y", "--json")
    )
    assert (inspect["kind"], inspect["params"]["eval_name"]) == ("inspect_ai", "x/y")
    api_job = answer(
        shell("jobs", "submit", "--kind", "api", "--set", "model=org/M-1B", "--set", "max_model_len=512", "--json",
              "--allowed-hardware", "1x A100", "--allowed-hardware", "1x H100", "--image", "own")
    )  # fmt: skip
    assert (api_job["kind"], api_job["params"]["max_model_len"]) == ("api", 512)
    assert (api_job["allowed_hardware"], api_job["image"]) == (["1x A100", "1x H100"], "own")


def test_a_deployment_says_how_it_is_asked_and_ended(shell: Terminal, api: Api) -> None:
    done = shell("jobs", "submit", "--kind", "api", "--set", "model=org/Served-1B")
    job = done.out.partition(":")[0]
    assert done.err == f"ask it with: tutelage chat org/Served-1B MESSAGE; end it with: tutelage jobs cancel {job}\n"
    assert api.ok("GET", f"/api/jobs/{job}")["timeout"] is None  # it stays until then
    assert shell("jobs", "cancel", job).out == f"{job}: canceled\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--kind", "inferense", "--set", "model=m"),
            "--kind inferense: is none; did you mean 'inference'?; one of fine_tuning, weighted_sft, inference, "
            "logprob, multiple_choice, inspect_ai, api",
        ),
        (
            ("--kind", "custom", "--set", "model=m"),
            "--kind custom: a command of your own is submitted with: tutelage exec -- COMMAND",
        ),
        (("--kind", "api"), "no options given; name a YAML file of the options of that kind, or write --set key=value"),
        (("none.yaml", "--kind", "api"), "none.yaml: no such config file; check the path"),
        (("--kind", "api", "--set", "model"), "--set model: write key=value, for example --set max_steps=50"),
    ],
)
def test_what_cannot_be_submitted(shell: Terminal, arguments: tuple[str, ...], sentence: str) -> None:
    done = shell("jobs", "submit", *arguments)
    assert (done.code, done.out, done.err) == (2, "", f"error: {sentence}\n")


def test_an_option_that_is_none(shell: Terminal, api: Api, tmp_path: Path) -> None:
    """One sentence, before the file is uploaded."""
    (tmp_path / "rows.jsonl").write_bytes(jsonl([conversation(77)]))
    before = api.ok("GET", "/v1/files")["data"]
    done = shell("jobs", "submit", "--kind", "inference", "--set", "model=m", "--set", "input_file_id=rows.jsonl",
                 "--set", "max_token=5")  # fmt: skip
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: 'max_token' is not an option; did you mean 'max_tokens'?\n"
    assert api.ok("GET", "/v1/files")["data"] == before


def test_a_value_and_a_file_that_are_none(shell: Terminal, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(jsonl([conversation(1)]))
    wrong = shell("jobs", "submit", "--kind", "logprob", "--set", "model=m", "--set", "dataset=rows.jsonl",
                  "--set", "batch_size=0")  # fmt: skip
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err.startswith("error: batch_size: 0 does not fit; ")
    missing = shell("jobs", "submit", "--kind", "logprob", "--set", "model=m", "--set", "dataset=none.jsonl")
    assert (missing.code, missing.out) == (2, "")
    assert missing.err.startswith("error: dataset: 'none.jsonl' is neither a file here nor the id of an uploaded one; ")


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Served]:
    """A server with a worker, which hears soon that its job is canceled."""
    folder = tmp_path_factory.mktemp("worked")
    with (
        served(folder / "home", migrated=migrated_sqlite, heartbeat_seconds=0.1) as server,
        working(server.url, folder / "worker", name="ours"),
    ):
        yield server


@pytest.fixture
def exec_(shell: Terminal, worked: Served, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TUTELAGE_URL", worked.url)
    return shell


def test_a_command_is_waited_for(exec_: Terminal, tmp_path: Path) -> None:
    """Mounted under another name, a folder under its own; its log comes, then how it ended."""
    (tmp_path / "words.txt").write_text("mounted")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "more.txt").write_text("too")
    script = "cat sub/w.txt data/more.txt; echo '' $0 $1"
    done = exec_(
        "exec",
        "--mount",
        "words.txt:sub/w.txt",
        "--mount",
        "data",
        "--wait",
        "--",
        "bash",
        "-c",
        script,
        "--wait",
        "$x",
    )
    job = done.out.partition(":")[0]
    assert (done.code, done.err) == (0, ""), done
    assert done.out.splitlines() == [f"{job}: pending", "mountedtoo --wait $x", f"{job}: completed"]
    assert job.startswith("execjob-")


def test_with_json_the_log_goes_beside(exec_: Terminal) -> None:
    done = exec_("exec", "--wait", "--json", "--requires-vram-gb", 0, "bash", "-c", "echo printed")
    job = answer(done)
    assert (job["status"], job["outputs"]) == ("completed", {})
    assert done.err.splitlines() == [f"{job['id']}: pending", "printed"]


def test_a_command_that_fails(exec_: Terminal) -> None:
    done = exec_("exec", "--wait", "--", "bash", "-c", "echo printed; exit 3")
    job = done.out.partition(":")[0]
    assert done.code == 1
    assert done.out.splitlines() == [f"{job}: pending", "printed"]
    assert done.err.startswith(f"error: {job}: failed: ")
    assert "exit code 3" in done.err
    again = exec_("exec", "--wait", "--json", "--", "bash", "-c", "echo printed; exit 3")
    assert answer(again, code=1)["status"] == "failed"
    assert again.err.splitlines()[-1].startswith(f"error: {job}: failed: ")


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1), ("canceled", 1)])
def test_a_training_job_is_waited_for(own_server: Served, tmp_path: Path, status: str, code: int) -> None:
    (tmp_path / "rows.jsonl").write_bytes(jsonl([conversation(1)]))
    config = options_file(tmp_path, model="org/M", training_file="rows.jsonl")
    api = own_server.api()
    with running("jobs", "submit", config, "--wait", TUTELAGE_URL=own_server.url) as waiting:
        job = line_of(waiting.stdout).removesuffix(": pending\n")
        run = api.running(api.ok("GET", f"/api/jobs/{job}"))
        api.print(run.run_id, 0, b"sft step 1/1\n")
        api.finish(run.run_id, status, reason="as the test says")
        out, err = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == code
    if code:
        assert out == "sft step 1/1\n"
        assert err == f"error: {job}: {status}: as the test says; see: tutelage jobs logs {job}\n"
    else:
        assert (out, err) == (f"sft step 1/1\n{job}: completed\n", "")


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["plain", "json"])
def test_a_job_that_is_canceled_while_it_is_waited_for(worked: Served, options: tuple[str, ...]) -> None:
    script = f"echo begun {len(options)}; sleep 600"
    with running("exec", "--wait", *options, "--", "bash", "-c", script, TUTELAGE_URL=worked.url) as waiting:
        log = waiting.stderr if options else waiting.stdout
        job = line_of(log).partition(":")[0]
        assert line_of(log) == f"begun {len(options)}\n"
        worked.api().ok("POST", f"/api/jobs/{job}/cancel", {})
        out, err = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 1
    assert err.splitlines()[-1].startswith(f"error: {job}: canceled: ")
    if options:
        assert json.loads(out)["status"] == "canceled"
    else:
        assert out == ""


def test_a_cloud_type_that_no_worker_has(exec_: Terminal, worked: Served) -> None:
    job = answer(exec_("exec", "--cloud-type", "COMMUNITY", "--json", "--", "echo", "hi"))
    assert (job["cloud_type"], job["status"]) == ("COMMUNITY", "pending")
    found = exec_("jobs", "explain", job["id"])
    assert "COMMUNITY" in next(line for line in found.out.splitlines() if line.startswith("ours"))
    allowed = answer(exec_("exec", "--cloud-type", "ALL", "--json", "--", "echo", "hi"))
    assert allowed["id"] == job["id"]  # where a job may run is not part of what it is
    assert ended_job(worked.api(), job)["status"] == "completed"
    wrong = exec_("exec", "--cloud-type", "SECURED", "--", "true")
    assert (wrong.code, wrong.out) == (2, "")
    assert "SECURED" in wrong.err


def test_commands_that_are_none(shell: Terminal) -> None:
    missing = shell("exec", "--wait")
    assert (missing.code, missing.out) == (2, "")
    assert "COMMAND" in missing.err
    wrong = shell("exec", "--cloudtype", "ALL", "--", "true")  # an option of ours, not of the command
    assert (wrong.code, wrong.out) == (2, "")
    assert "--cloud-type" in wrong.err
    mount = shell("exec", "--mount", "none.py", "--", "true")
    assert (mount.code, mount.out) == (2, "")
    assert mount.err.startswith("error: mount: 'none.py' is not there; ")
    out = shell("exec", "--mount", "none.py:../x", "--", "true")
    assert out.code == 2
