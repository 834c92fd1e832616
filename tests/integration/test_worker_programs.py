"""Programs as a worker starts them: one job trains the real small model, others ask the result; a model is served.

The server of jobs is a stand-in that speaks HTTP: it takes events and files and says what it got.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tests.small_runs import run_small, save_tiny_model, small_config, write_rows
from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Message
from tutelage.jobs.identity import FileHash
from tutelage.models import load_frozen, response_log_probs
from tutelage.monitoring.prompts import answer_text
from tutelage.rollouts import generate

JOB, RUN = "ftjob-0123456789ab", "run-0123456789abcdef0123456789abcdef"
PATIENCE = 120.0


class JobServer:
    """What programs report, over HTTP. failing: how many requests from now on are answered with 503."""

    def __init__(self) -> None:
        self.events: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.serving: dict[str, Any] | None = None
        self.failing = 0
        self.changed = threading.Condition()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def outputs(self) -> dict[str, Any]:
        newest: dict[str, Any] = {}
        for data in self.events.values():
            newest |= {name: value for name, value in data.items() if value is not None}
        return newest

    def rows(self, file_id: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files[file_id].decode().splitlines()]

    def wait_for(self, condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
        """Until the condition holds; not longer than the process lives."""
        end = time.monotonic() + PATIENCE
        with self.changed:
            while not condition():
                assert process.poll() is None, f"ended with {process.returncode}"
                assert time.monotonic() < end, "did not happen in time"
                self.changed.wait(0.5)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, content: Mapping[str, Any], status: int = 200) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def body(self) -> bytes:
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                parts: list[bytes] = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def do_GET(self) -> None:
                if self.path == "/api/me":
                    organization = {"id": "o", "name": "o"}
                    self.answer({"organization": organization, "scopes": [], "version": "1", "run_id": RUN})
                else:
                    self.answer({"error": {"message": "no such file", "type": "", "code": None, "param": None}}, 404)

            def do_PUT(self) -> None:
                with server.changed:
                    server.serving = json.loads(self.body())
                    server.changed.notify_all()
                self.answer(run_of(RUN))

            def do_POST(self) -> None:
                body = self.body()
                with server.changed:
                    if server.failing > 0:
                        server.failing -= 1
                        self.answer({"error": {"message": "away", "type": "", "code": None, "param": None}}, 503)
                        return
                    if self.path == "/api/events":
                        for event in json.loads(body)["events"]:
                            server.events.setdefault(event["id"], event["data"])
                        self.answer({"added": 1})
                    else:
                        self.answer(server.taken(self.headers["Content-Type"], body))
                    server.changed.notify_all()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def taken(self, content_type: str, body: bytes) -> dict[str, Any]:
        form = BytesParser().parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
        parts = {part.get_param("name", header="content-disposition"): part for part in form.get_payload()}
        content = parts["file"].get_payload(decode=True)
        purpose = parts["purpose"].get_payload(decode=True).decode()
        seen = FileHash("o")
        seen.update(content)
        self.files[seen.id(purpose)] = content
        return {
            "id": seen.id(purpose),
            "object": "file",
            "bytes": len(content),
            "created_at": 1,
            "filename": parts["file"].get_filename(),
            "purpose": purpose,
            "status": "processed",
        }


def run_of(run_id: str) -> dict[str, Any]:
    times = {"created_at": "2025-01-01T00:00:00Z", "finished_at": None}
    ends = {"reason": None, "exit_code": None, "log_bytes": 0, "latest": {}}
    return {"id": run_id, "job_id": JOB, "worker_id": None, "attempt": 1, "status": "in_progress", **times, **ends}


@pytest.fixture
def server() -> Iterator[JobServer]:
    server = JobServer()
    yield server
    server.close()


@contextmanager
def started(
    folder: Path, server: JobServer, kind: str, params: Mapping[str, Any], asked: Mapping[str, Any] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The program's process, in a folder as a worker makes it."""
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")
    job = {"id": JOB, "params": dict(asked or params)}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    own = {"TUTELAGE_JOB_ID": JOB, "TUTELAGE_RUN_ID": RUN, "TUTELAGE_URL": server.url, "N_GPUS": "0"}
    with (
        (folder / "log").open("w", encoding="utf-8") as log,
        subprocess.Popen(
            [sys.executable, "-m", f"tutelage.worker.programs.{kind}"],
            cwd=folder,
            env=os.environ | own,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def finished(folder: Path, server: JobServer, kind: str, params: Mapping[str, Any], **names: Any) -> dict[str, Any]:
    """The outputs of a job that ends well."""
    server.events.clear()
    with started(folder, server, kind, params, **names) as process:
        assert process.wait(PATIENCE) == 0, (folder / "log").read_text(encoding="utf-8")[-3000:]
    return server.outputs


def test_a_job_trains_the_small_model_and_others_ask_the_result(tmp_path: Path, server: JobServer) -> None:
    """sft, inference and logprob; the server answers nothing for a while. What comes back is computed again here."""
    rows = write_rows(tmp_path / "rows.jsonl", [("What is the capital of France?", "Paris."), ("Say yes.", "Yes.")])
    config = small_config(tmp_path, "x", model="smollm2", training_file=rows, optim="adamw_torch", learning_rate=1e-3)
    options = config.flat() | {"merge_before_push": True, "per_device_train_batch_size": 2}
    params = {name: value for name, value in options.items() if name not in ("output_dir", "report_to")}
    server.failing = 3
    assert finished(tmp_path / "ft", server, "fine_tuning", params)["model"] == JOB
    losses = [data["loss"] for data in server.events.values() if data.get("tag") == "train"]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    model = str(tmp_path / "ft" / "uploads" / "model")

    asked = {"model": model, "input_file_id": str(rows), "max_tokens": 8, "temperature": 0.0, "min_tokens": 0}
    # The last turn of these rows would begin the answer.
    questions = tmp_path / "questions.jsonl"
    question = [{"role": "user", "content": "What is the capital of France?"}]
    questions.write_text(json.dumps({"messages": question}) + "\n", encoding="utf-8")
    outputs = finished(tmp_path / "inf", server, "inference", asked | {"input_file_id": str(questions)})
    answers = server.rows(outputs["file"])

    scored = finished(tmp_path / "lp", server, "logprob", {"model": model, "dataset": str(rows)})
    loaded = load_frozen(model)
    template = ChatTemplate(loaded.tokenizer)
    turns = [Message("user", question[0]["content"])]
    (ids,) = generate(
        loaded.model,
        [template.encode_prompt(turns)],
        pad_token_id=template.end_of_turn_ids[0],
        stop_ids=template.end_of_turn_ids,
        max_new_tokens=8,
        temperature=0.0,
    )
    assert answers == [{"messages": question, "completion": answers[0]["completion"]}]
    assert answers[0]["completion"].strip() == answer_text(template, ids)
    pairs = [
        (
            template.encode_prompt([Message("user", asked)]),
            template.encode_response([Message("user", asked), Message("assistant", answer)]),
        )
        for asked, answer in (("What is the capital of France?", "Paris."), ("Say yes.", "Yes."))
    ]
    nll = -torch.cat(response_log_probs(loaded.model, pairs)).mean()
    assert_close(scored["loss"], float(nll), rtol=1e-4, atol=1e-4)
    assert [len(row["tokens"]) for row in server.rows(scored["file"])] == [len(answer) for _, answer in pairs]


def ask(port: int, model: str, question: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return json.loads(response.read())["choices"][0]["message"]["content"]


def greedy_text(model: Any, question: str) -> str:
    tokenizer = tiny_tokenizer()
    template = ChatTemplate(tokenizer)
    (ids,) = generate(
        model,
        [template.encode_prompt([Message("user", question)])],
        pad_token_id=template.end_of_turn_ids[0],
        stop_ids=template.end_of_turn_ids,
        max_new_tokens=8,
        temperature=0.0,
    )
    return answer_text(template, ids)


def test_a_model_and_an_adapter_are_served_under_the_names_they_were_asked_by_until_sigterm(
    tmp_path: Path, server: JobServer
) -> None:
    run = run_small(tmp_path, "run", learning_rate=5.0)
    base = str(save_tiny_model(tmp_path / "tiny"))
    params = {"model": base, "lora_adapters": [str(run.model_path)]}
    names = {"model": "org/tiny", "lora_adapters": ["ftjob-0123456789ab:step-2"]}
    with started(tmp_path / "api", server, "api", params, asked=names) as process:
        server.wait_for(lambda: server.serving, process)
        serving = server.serving
        assert serving is not None
        assert list(serving["models"]) == ["org/tiny", "ftjob-0123456789ab:step-2"]
        models = list(serving["models"].values())
        answers = [ask(serving["port"], model, "Say yes.").strip() for model in models]
        trained = load_frozen(str(run.model_path)).model
        assert answers == [greedy_text(model, "Say yes.") for model in (tiny_model(tiny_tokenizer()), trained)]
        assert answers[0] != answers[1]
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - begun < 10
    with pytest.raises(urllib.error.URLError):
        ask(serving["port"], models[0], "Say yes.")


def test_the_server_of_a_model_dies_with_its_program_and_its_end_is_the_programs(
    tmp_path: Path, server: JobServer
) -> None:
    params = {"model": str(save_tiny_model(tmp_path / "tiny"))}
    for number, signalled in enumerate(("program", "server")):
        server.serving = None
        folder = tmp_path / f"api-{number}"
        with started(folder, server, "api", params) as process:
            server.wait_for(lambda: server.serving, process)
            (child,) = children_of(process.pid)
            os.kill(process.pid if signalled == "program" else child, signal.SIGKILL)
            code = process.wait(20)
            end = time.monotonic() + 20
            while is_running(child):
                assert time.monotonic() < end
        assert code == (-signal.SIGKILL if signalled == "program" else 1)
    assert "transformers serve ended with exit code -9" in (folder / "error.txt").read_text(encoding="utf-8")


def test_a_model_that_cannot_be_served_is_the_reason(tmp_path: Path, server: JobServer) -> None:
    model = save_tiny_model(tmp_path / "tiny")
    (model / "model.safetensors").write_bytes(b"torn")
    with started(tmp_path / "api", server, "api", {"model": str(model)}) as process:
        assert process.wait(PATIENCE) == 1
    error = (tmp_path / "api" / "error.txt").read_text(encoding="utf-8")
    assert "transformers serve ended with exit code" in error
    assert "SafetensorError" in error
    assert server.serving is None


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
