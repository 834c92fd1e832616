"""What a new user does with jobs: `tutelage serve`, then a first job by SDK, shell and the openai package, on the real
model, and what comes of it: files, answers, log-probabilities, a model that is served."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.e2e.pages import Visitor
from tests.served import until
from tutelage import OpenWeights
from tutelage.data.conversations import read_conversations

pytest_plugins = ["tests.e2e.page_fixtures"]

ROWS = [
    {"messages": [{"role": "user", "content": f"Code of {name}?"}, {"role": "assistant", "content": code}]}
    for name, code in (("Kenya", "+254"), ("Peru", "+51"), ("Chad", "+235"), ("Fiji", "+679"))
]
SMALL = {
    "max_steps": 3,
    "warmup_steps": 0,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "requires_vram_gb": 0,
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server with its worker, started as the README says."""
    folder = tmp_path_factory.mktemp("served")
    command = [sys.executable, "-m", "tutelage", "serve", "--port", "0"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env={**os.environ})
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("tutelage serves http://127.0.0.1:"), line
    yield line.split()[2]
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said.endswith("stopped\n")
    assert sorted(path.name for path in folder.iterdir()) == ["tutelage-home"]  # everything it stores


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    assert len(read_conversations(path)) == len(ROWS)
    return path


_WATCH = """() => {
  window.seen = [];
  const look = () => window.seen.push({
    status: document.querySelector("h1 .badge").textContent,
    characters: document.getElementById("log-text").textContent.length,
    loss: document.querySelector(".plot[data-field=loss] .readout")?.textContent.trim(),
    drawn: document.querySelector(".plot[data-field=loss] canvas") !== null,
  });
  const whatever = { subtree: true, childList: true, characterData: true };
  new MutationObserver(look).observe(document.getElementById("main"), whatever);
}"""
"""Remembers what is on the page each time it changes."""


def run(url: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tutelage", *arguments]
    environment = {**os.environ, "TUTELAGE_URL": url}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def sdk(url: str) -> Iterator[OpenWeights]:
    with OpenWeights(base_url=url) as client:
        yield client


@pytest.fixture
def openai(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        yield client


def test_by_the_sdk(url: str, sdk: OpenWeights, openai: OpenAI, data: Path, visit: Visitor, tmp_path: Path) -> None:
    """A browser looks at the run meanwhile: log and plot grow on its page before the end, without a reload."""
    sampled = {"dataset": str(data), "eval_steps": 3, "max_tokens": 4, "tag": "codes"}
    job = sdk.fine_tuning.create(
        model="smollm2", training_file=str(data), loss="sdft", learning_rate=1e-3, save_steps=1, sdft_max_new_tokens=4,
        sampling_callbacks=[sampled], logp_callback_datasets={"codes": str(data)}, eval_every_n_steps=1, **SMALL,
    )  # fmt: skip
    page = visit(f"{url}/runs/{until(lambda: job.runs, 'a worker taking it')[0].id}")
    page.evaluate(_WATCH)
    log = "".join(job.logs(follow=True))
    assert job.wait().status == "completed"
    assert "sdft step 3/3" in log
    assert job.outputs is not None
    page.locator("h1 .badge.completed").wait_for()
    losses = [event.data["loss"] for event in job.events if event.data.get("tag") == "train" and "loss" in event.data]
    meanwhile = [look for look in page.evaluate("window.seen") if look["status"] == "in progress"]
    lengths = list(dict.fromkeys(look["characters"] for look in meanwhile))
    assert lengths == sorted(lengths)
    assert len(lengths) > 3
    shown = list(dict.fromkeys(look["loss"] for look in meanwhile if look["drawn"]))
    told = [f"{loss:.4g}" for loss in losses]  # the page has four digits too
    assert len(told) == SMALL["max_steps"]
    assert len(shown) > 1
    assert shown == [loss for loss in told if loss in shown]  # what comes at once is drawn at once
    paths = {str(path.relative_to(tmp_path)) for path in job.download(tmp_path)}
    assert {"model/model.safetensors", "checkpoint-1/adapter_model.safetensors", "events.jsonl", "run.json"} <= paths
    samples = [event for event in job.events if event.data.get("type") == "samples"]
    assert len(sdk.files.content(samples[-1].data["file"]).splitlines()) == len(ROWS)

    model = job.outputs["model"]
    before = sdk.logprob.create(model="smollm2", dataset=str(data), requires_vram_gb=0)
    after = sdk.logprob.create(model=model, dataset=str(data), requires_vram_gb=0)
    middle = sdk.logprob.create(model=f"{job.id}:step-1", dataset=str(data), requires_vram_gb=0)
    inference = sdk.inference.create(
        model=model, input_file_id=str(data), max_tokens=4, temperature=0, requires_vram_gb=0
    )
    found = [one.wait().raise_for_status().outputs for one in (before, middle, after)]
    assert found[0]["loss"] > found[1]["loss"] > found[2]["loss"]
    answers = sdk.files.content(inference.wait().raise_for_status().outputs["file"]).splitlines()
    assert [json.loads(line)["messages"] for line in answers] == [row["messages"] for row in ROWS]

    messages = [{"role": "user", "content": "Code of Kenya?"}]
    with sdk.api.deploy(model, requires_vram_gb=0):
        whole = sdk.chat.completions.create(model=model, messages=messages, max_tokens=4, temperature=0)
        parts = openai.chat.completions.create(model=model, messages=messages, max_tokens=4, temperature=0, stream=True)  # type: ignore[call-overload] - messages are plain dicts
        streamed = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert whole.choices[0].message.content == streamed
        assert streamed
        assert model in [one.id for one in openai.models.list()]


def test_by_the_shell(url: str, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"model: smollm2\ntraining_file: {data}\nloss: dft\nmax_steps: 1\n", encoding="utf-8")
    done = run(url, "jobs", "submit", "config.yaml", "--requires-vram-gb", "0", "--wait", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    job = done.stdout.split(":", 1)[0]
    assert done.stdout.endswith(f"{job}: completed\n")
    assert job in run(url, "jobs", "ls", cwd=tmp_path).stdout
    shown = json.loads(run(url, "jobs", "show", job, "--json", cwd=tmp_path).stdout)
    assert shown["job"]["params"]["loss"] == "dft"
    assert "dft step 1/1" in run(url, "jobs", "logs", job, cwd=tmp_path).stdout
    assert run(url, "jobs", "fetch", job, "--output", "got", cwd=tmp_path).returncode == 0
    assert (tmp_path / "got" / "model" / "model.safetensors").is_file()
    script = "mkdir -p uploads && echo kept > uploads/kept.txt && echo printed && exit 3"
    failed = run(url, "exec", "--wait", "--", "bash", "-c", script, cwd=tmp_path)
    assert failed.returncode == 1
    assert "printed" in failed.stdout
    assert "exit code 3" in failed.stderr
    nobody = run("http://127.0.0.1:9", "jobs", "ls", cwd=tmp_path)
    assert nobody.returncode == 3
    assert nobody.stderr.startswith("error: http://127.0.0.1:9: no server answers there")
    assert run(url, "jobs", "show", "nothing", cwd=tmp_path).returncode == 2


def test_by_the_openai_package(openai: OpenAI, data: Path) -> None:
    with data.open("rb") as content:
        file = openai.files.create(file=content, purpose="fine-tune")
    hyperparameters = {"n_epochs": 1, "batch_size": 2, "max_new_tokens": 4, "check_rows": 2, "max_steps": 1}
    method: dict[str, object] = {"type": "sdft", "sdft": {"hyperparameters": hyperparameters}}
    job = openai.fine_tuning.jobs.create(
        model="smollm2", training_file=file.id, method=method, extra_body={"requires_vram_gb": 0, "save_steps": 1}
    )  # type: ignore[arg-type] - its types know OpenAI's methods only
    assert job.status == "queued"
    until(lambda: openai.fine_tuning.jobs.retrieve(job.id).status not in ("queued", "running"), "its end", 300)
    done = openai.fine_tuning.jobs.retrieve(job.id)
    assert (done.status, done.fine_tuned_model) == ("succeeded", job.id)
    assert next(iter(openai.fine_tuning.jobs.list(limit=1))).id == job.id
    assert any("loss" in event.message for event in openai.fine_tuning.jobs.list_events(job.id))
    checkpoints = openai.fine_tuning.jobs.checkpoints.list(job.id).data
    assert [one.fine_tuned_model_checkpoint for one in checkpoints] == [f"{job.id}:step-1"]
    assert openai.models.retrieve(job.id).id == job.id
