"""schemathesis over the whole API: no 5xx anywhere, and every answer is as the OpenAPI document says.

A process of its own, since it brings its own plugins and warnings; so many examples, and the same requests every time.
"""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.served import Served, conversation, jsonl, served
from tutelage.server import streams
from tutelage.server.own import workers

PATIENCE = 600.0
CLAIM_SECONDS, STREAM_SECONDS = 0.1, 1.0
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "use_after_free",
)
"""All but: whether what the schema allows is taken (there are rules between fields), and `Allow` of 405 (Starlette
names one method of several)."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("fuzzed"), migrated=migrated_sqlite) as running:
        yield running


def test_answers_are_those_of_the_document(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody here waits half a minute for a job that nobody submits, or follows a run that does nothing until it is
    # given up; what is checked of a claim and of a stream comes before.
    next_job, sent = workers._next_job, streams._sent

    def next_job_now(body: workers.NewClaim, *others: Any) -> Any:
        return next_job(body.model_copy(update={"wait": min(body.wait, CLAIM_SECONDS)}), *others)

    async def sent_now(*arguments: Any) -> AsyncIterator[bytes]:
        async with contextlib.aclosing(sent(*arguments)) as stream:
            with contextlib.suppress(TimeoutError, StopAsyncIteration):
                while True:
                    yield await asyncio.wait_for(anext(stream), STREAM_SECONDS)

    monkeypatch.setattr(workers, "_next_job", next_job_now)
    monkeypatch.setattr(streams, "_sent", sent_now)
    # Without tokens: among all requests is one that revokes its own.
    api = server.api()
    # Something of everything, so that ids can be found and used.
    file = api.upload(jsonl([conversation()]), "fine-tune")["id"]
    running = api.running(api.ok("POST", "/v1/fine_tuning/jobs", {"model": "smollm2", "training_file": file}))
    api.report(running.run_id, {"tag": "train", "step": 1, "loss": 1.0})
    api.print(running.run_id, 0, b"hello\n")
    program = "import sys; from schemathesis.cli import schemathesis; schemathesis(sys.argv[1:])"
    command = [sys.executable, "-c", program, "--no-color", "run", f"{server.url}/openapi.json"]
    command += ["--checks", ",".join(CHECKS)]
    command += [
        "--phases",
        "coverage,fuzzing",
        "--max-examples",
        "30",
        "--generation-deterministic",
        "--no-shrink",
    ]
    command += ["--continue-on-failure", "--request-timeout", "20", "--suppress-health-check", "all"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
    # None was left out.
    operations = sum(len(methods) for methods in api.ok("GET", "/openapi.json")["paths"].values())
    assert f"  Tested: {operations}\n" in done.stdout, done.stdout[-6000:] + done.stderr
    assert done.returncode == 0, done.stdout[-6000:]
    assert "Traceback" not in server.logged()
