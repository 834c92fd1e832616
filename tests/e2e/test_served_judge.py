"""A judge behind a real server: SmolLM2 under `transformers serve`, asked by `tutelage eval`.

A model of this size judges nothing; what is tested is that every call comes back, and that what cannot be read is
counted.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import pytest
import yaml

from tests.e2e.command_line import Terminal
from tests.small_runs import save_tiny_model
from tutelage.models import resolve_model

PATIENCE = 180.0
"""Seconds for the server to read its model."""


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, str]]:
    """The server's address, and the name of its model."""
    model = resolve_model("smollm2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", model]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(
        [*command, *options],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server)
            yield f"http://127.0.0.1:{port}/v1", model
        finally:
            server.terminate()


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer; the server's exit code: {server.poll()}")


def write_suite(folder: Path, url: str, model: str) -> Path:
    label = {"prompt": "Text: {answer}\n\nIs the text above in Spanish? Answer yes or no.", "labels": ["yes", "no"]}
    points = "How good is this, from 0 to 100? Reply with the number only.\n{answer}"
    question = {"id": "one", "paraphrases": ["Why?", "Why so?"], "max_new_tokens": 4}
    questions = [question | {"judge_prompts": {"spanish": label, "good": points}}]
    (folder / "questions.yaml").write_text(yaml.safe_dump(questions), encoding="utf-8")
    judge = {"judge_model": model, "judge_base_url": url, "judge_timeout": 120, "judge_max_tokens": 8}
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump({"freeform": {"file": "questions.yaml"} | judge}), encoding="utf-8")
    return path


def test_every_judgement_comes_back_and_what_cannot_be_read_is_counted(
    tmp_path: Path, terminal: Terminal, served: tuple[str, str]
) -> None:
    suite, output = write_suite(tmp_path, *served), tmp_path / "out"
    done = terminal("eval", save_tiny_model(tmp_path / "tiny"), "--suite", suite, "--output", output)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (output / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    judgements = [(name, one) for row in rows for name, one in row["judgements"].items()]
    assert len(judgements) == 4
    assert all(one["text"] for _, one in judgements)
    failed = json.loads((output / "questions.json").read_text(encoding="utf-8"))["failed"]
    for name, key in (("spanish", "label"), ("good", "score")):
        unread = sum(one[key] is None for prompt, one in judgements if prompt == name)
        assert failed.get(f"{name}: unparsable", 0) == unread
    assert not any("no answer" in reason for reason in failed)
    assert {one["label"] for name, one in judgements if name == "spanish"} <= {"yes", "no", None}


def test_a_model_that_is_not_served_is_refused(tmp_path: Path, terminal: Terminal, served: tuple[str, str]) -> None:
    suite = write_suite(tmp_path, served[0], "gpt-9")
    done = terminal("eval", save_tiny_model(tmp_path / "tiny"), "--suite", suite, "--output", tmp_path / "out")
    assert done.code == 2
    assert "gpt-9" in done.err
