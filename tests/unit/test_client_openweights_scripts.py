"""Scripts as people wrote them for OpenWeights 0.14, with nothing but the import line changed.

Each runs in a process of its own against a real server, with a worker that pretends. The calls are those of the
README and the cookbook of that version.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_job_server import JobServer, PretendWorker, job_server
from tests.served import PATIENCE, conversation, jsonl
from tutelage.client.results import ClaimedJob
from tutelage.jobs.identity import FILE_ID

FINE_TUNING = """
import time
from tutelage import OpenWeights

ow = OpenWeights()
with open("train.jsonl", "rb") as file:
    training_file = ow.files.create(file, purpose="conversations")["id"]
held_out = ow.files.upload("train.jsonl", purpose="conversations")["id"]
job = ow.fine_tuning.create(
    model="unsloth/Qwen3-4B",
    training_file=training_file,
    loss="sft",
    epochs=1,
    learning_rate=1e-4,
    r=32,
    optim="adamw_torch",
    eval_every_n_steps="log",
    logp_callback_datasets={"held-out": held_out},
    sampling_callbacks=[{"dataset": held_out, "eval_steps": 10, "tag": "samples", "temperature": 1, "max_tokens": 5}],
    requires_vram_gb=48,
    allowed_hardware=["1x A100"],
)
assert job["status"] == "pending", job
while job.refresh().status != "completed":
    assert job.status in ("pending", "in_progress"), job.status
    time.sleep(0.05)
run = job.runs[-1]
events = ow.events.list(run_id=run.id)
losses = [event["data"]["loss"] for event in events if "loss" in event["data"]]
samples = [event["data"]["file"] for event in events if event["data"].get("tag") == "samples"]
print(losses, ow.files.content(samples[0]).decode("utf-8"), ow.files.content(run["log_file"]).decode("utf-8"))
print(ow.events.latest(["loss"], job_id=job.id), job.outputs["loss"])
job.download("artifacts", only_last_run=False)
found = ow.jobs.find(validated_params={"training_file": training_file})
print([one["id"] for one in found] == [job.id], ow.jobs.retrieve(job["id"]).id == job.id, len(ow.jobs.list(limit=10)))
print(job.params["validated_params"]["finetuned_model_id"] == job.id)
"""

INFERENCE = """
from tutelage import OpenWeights

ow = OpenWeights()
file = ow.files.create(file=open("train.jsonl", "rb"), purpose="conversations")
job = ow.inference.create(
    model="unsloth/Qwen3-4B", input_file_id=file["id"], max_tokens=1000, temperature=1, min_tokens=600
)
job.wait()
if job.status == "completed":
    output = ow.files.content(job["outputs"]["file"]).decode("utf-8")
    print(output)
"""

CUSTOM = """
import json
from typing import Dict, Type
from pydantic import BaseModel, Field
from tutelage import Jobs, OpenWeights, register

ow = OpenWeights()

class AddParams(BaseModel):
    a: float = Field(..., description="first")
    b: float = Field(..., description="second")

@register("addition")
class AdditionJob(Jobs):
    mount: Dict[str, str] = {"add.py": "add.py", "lib/": "lib/"}
    params: Type[BaseModel] = AddParams
    requires_vram_gb: int = 0
    base_image: str = "org/image:v1"

    def get_entrypoint(self, validated_params: AddParams) -> str:
        return f"python add.py '{json.dumps(validated_params.model_dump())}'"

job = ow.addition.create(a=5, b=7)
job.wait()
print(job.script, job.docker_image, sorted(job.params["mounted_files"]))
print(job.outputs["result"], job.runs[-1].events[-1]["data"])
"""

INSIDE = """
from tutelage import OpenWeights

ow = OpenWeights()
ow.run.log({"text": "computing"})
ow.run.log({"result": 12})
ow.run.log({"plot": 1}, file=open("train.jsonl", "rb"))
print(ow.run.id, len(ow.run.events))
"""


@pytest.fixture
def server(tmp_path: Path, migrated_sqlite: Path) -> Iterator[JobServer]:
    with job_server(tmp_path / "home", migrated_sqlite) as running:
        yield running


def ran(server: JobServer, folder: Path, script: str, **environment: str) -> str:
    """What the script prints. It is an error where it warns, but of files that such scripts leave open."""
    (folder / "train.jsonl").write_bytes(jsonl([conversation(1), conversation(2)]))
    (folder / "add.py").write_text("print(1)")
    (folder / "lib").mkdir(exist_ok=True)
    (folder / "lib" / "more.py").write_text("")
    token = server.client.http.token or ""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", script],
        cwd=folder,
        env={**os.environ, "TUTELAGE_URL": server.url, "OPENWEIGHTS_API_KEY": token} | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def working(server: JobServer, work: Callable[[PretendWorker, ClaimedJob], Any]) -> threading.Thread:
    """A worker that waits for a job and does this with it."""

    def run() -> None:
        worker = server.worker(hardware="1x A100")
        claimed = worker.claim(wait=20)
        work(worker, claimed)
        worker.complete(claimed.run_id)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_fine_tuning_with_log_probabilities_and_samples(server: JobServer, tmp_path: Path) -> None:
    def work(worker: PretendWorker, claimed: ClaimedJob) -> None:
        params = claimed.job.params
        assert (params["r"], params["eval_every_n_steps"]) == (32, 1)
        assert params["sampling_callbacks"][0]["every_n_steps"] == 10
        worker.api.append_log(claimed.run_id, 0, b"training\n")
        worker.report(claimed.run_id, {"tag": "train", "loss": 2.5}, {"tag": "train", "loss": 1.5})
        (tmp_path / "samples.jsonl").write_bytes(b"sampled")
        file = worker.api.upload(tmp_path / "samples.jsonl", "samples")
        worker.report(claimed.run_id, {"tag": "samples", "file": file.id, "path": "samples.jsonl"})

    worker = working(server, work)
    out = ran(server, tmp_path, FINE_TUNING)
    worker.join()
    assert out.splitlines() == ["[2.5, 1.5] sampled training", "", "{'loss': 1.5} 1.5", "True True 1", "True"]
    assert [path.read_bytes() for path in (tmp_path / "artifacts").rglob("samples.jsonl")] == [b"sampled"]


def test_inference(server: JobServer, tmp_path: Path) -> None:
    def work(worker: PretendWorker, claimed: ClaimedJob) -> None:
        assert FILE_ID.match(claimed.job.params["input_file_id"])
        worker.leave(claimed.run_id, tmp_path, "answers.jsonl", b'{"completion": "hi"}')

    worker = working(server, work)
    assert ran(server, tmp_path, INFERENCE) == '{"completion": "hi"}\n'
    worker.join()


def test_a_custom_job_and_what_it_reports_from_inside(server: JobServer, tmp_path: Path) -> None:
    inside: list[str] = []

    def work(worker: PretendWorker, claimed: ClaimedJob) -> None:
        assert claimed.job.entrypoint == 'python add.py \'{"a": 5.0, "b": 7.0}\''
        inside.append(claimed.run_id)
        inside.append(
            ran(server, tmp_path, INSIDE, OPENWEIGHTS_RUN_ID=claimed.run_id, OPENWEIGHTS_API_KEY=claimed.token)
        )

    worker = working(server, work)
    out = ran(server, tmp_path, CUSTOM)
    worker.join()
    assert inside[1] == f"{inside[0]} 3\n"
    assert out.splitlines() == [
        "python add.py '{\"a\": 5.0, \"b\": 7.0}' org/image:v1 ['add.py', 'lib/more.py']",
        "12 {'plot': 1}",
    ]
