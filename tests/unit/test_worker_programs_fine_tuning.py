"""Fine-tuning jobs on the tiny model: what is reported while they train, and what they leave in `uploads/`."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.small_runs import (
    ROWS,
    assert_same_bits,
    run_small,
    save_tiny_model,
    small_config,
    trained_weights,
    write_rows,
)
from tests.tiny import CHATML
from tests.unit.test_worker_programs import JOB, ReportLog, away, job_folder, outbox_for
from tutelage import Run
from tutelage.data.chat_template import ChatTemplate
from tutelage.errors import ConfigError, FencedError
from tutelage.events import EventLog, Tag
from tutelage.files import JsonLinesFile
from tutelage.models import load_frozen, response_log_probs
from tutelage.monitoring.log_probs import AnswerSet
from tutelage.training.sdft_trainer import TEACHER_FILE
from tutelage.worker.models import ADAPTER_CONFIG, BASE
from tutelage.worker.programs.fine_tuning import fine_tune, stopping_within
from tutelage.worker.programs.follower import LineTail, RunFollower
from tutelage.worker.programs.outbox import Unreachable

OPTIONS = {"max_steps": 2, "save_steps": 1, "eval_every_n_steps": 1}


def job_params(folder: Path, **options: Any) -> dict[str, Any]:
    flat = small_config(folder, "unused", **(OPTIONS | options)).flat()
    return {name: value for name, value in flat.items() if name not in ("output_dir", "report_to")}


# --- following a run's files ------------------------------------------------------------------------------------------


def test_a_line_is_read_when_it_is_complete_and_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = LineTail(path)
    assert list(tail.new()) == []
    path.write_bytes(b'{"a": 1}\n{"a": ')
    assert list(tail.new()) == [(0, {"a": 1})]
    assert list(tail.new()) == []
    with path.open("ab") as file:
        file.write(b'2}\n\n{"torn\n[3]\n{"a": "\xe2\x80\xa8"}\n')
    # An empty line, a torn one and a list count, so that the number of a line never changes.
    assert list(tail.new()) == [(1, {"a": 2}), (5, {"a": "\u2028"})]


def write_run(run: Path, steps: int, log: EventLog, samples: JsonLinesFile) -> None:
    """What a run of two sampled prompts a step and one file of answers writes, in its order."""
    log.write(0, Tag.START, {"from_step": 0})
    for step in range(steps):
        for number in range(2):
            prompt = [{"role": "user", "content": f"q{number}"}]
            samples.append({"step": step, "tag": "poems", "prompt": prompt, "answer": f"a{step}.{number}"})
        log.write(step, Tag.LOGPROB, {"logp/held": -1.5 - step, "logp_per_answer/held": -3.0})
        log.write(step, Tag.TRAIN, {"loss": 1.0 / (step + 1), "nan": float("nan")})
        samples.append({"step": step + 1, "tag": "rollout", "question": "q", "response": "r"})
    log.write(steps, Tag.END, {"reason": "finished"})


@pytest.mark.parametrize("seed", range(5))
def test_a_server_that_fails_now_and_then_gets_each_line_once_and_in_order(tmp_path: Path, seed: int) -> None:
    """Half of all calls fail, one half of them after they took effect; the writer is faster than the reporter."""
    dice = random.Random(seed)

    def sometimes(number: int) -> None:
        if dice.random() < 0.3:
            raise Unreachable("reset")

    report = ReportLog(trouble=sometimes, after=sometimes)
    outbox = outbox_for(report)
    follower = RunFollower(tmp_path, outbox, tags={"poems"}, scratch=tmp_path / "reported")
    log, samples = EventLog(tmp_path / "events.jsonl"), JsonLinesFile(tmp_path / "samples.jsonl")
    writer = threading.Thread(target=write_run, args=(tmp_path, 30, log, samples))
    writer.start()
    while writer.is_alive():
        follower.collect()
        outbox.deliver()
    follower.collect(last=True)
    outbox.drain(10_000)
    lines = [data for data in report.data if "type" not in data]
    assert lines == [{**event.values, "tag": event.tag.value, "step": event.step} for event in log.read()]
    groups = [data for data in report.data if data.get("type") == "samples"]
    assert [(group["step"], group["tag"]) for group in groups] == [(step, "poems") for step in range(30)]
    for group in groups:
        assert [row["completion"] for row in report.rows(group["file"])] == [f"a{group['step']}.{n}" for n in range(2)]
    losses = [(data["step"], data["held"], data["tag"]) for data in report.data if data.get("type") == "logprobs"]
    assert losses == [(step, 1.5 + step, "held") for step in range(30)]


def test_samples_are_reported_while_training_goes_on_as_soon_as_the_next_step_is(tmp_path: Path) -> None:
    report = ReportLog()
    outbox = outbox_for(report)
    follower = RunFollower(tmp_path, outbox, tags={"poems"}, scratch=tmp_path / "reported")
    write_run(tmp_path, 3, EventLog(tmp_path / "events.jsonl"), JsonLinesFile(tmp_path / "samples.jsonl"))
    lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "events.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    follower.collect()
    outbox.deliver()
    assert [data["step"] for data in report.data if data.get("type") == "samples"] == [0, 1]


# --- a whole job ------------------------------------------------------------------------------------------------------


def test_a_job_reports_every_line_and_leaves_model_checkpoints_and_samples(tmp_path: Path) -> None:
    """The model is that of a run of the same config; log-probabilities are those of the library."""
    prompts = write_rows(tmp_path / "prompts.jsonl", ROWS[:2])
    params = job_params(
        tmp_path,
        merge_before_push=True,
        sampling_callbacks=[{"file": str(prompts), "every_n_steps": 1, "max_new_tokens": 4, "tag": "poems"}],
        logp_callback_datasets={"held": str(prompts)},
    )
    report = ReportLog(trouble=away(1, 4))
    job = job_folder(tmp_path / "job", params, params | {"model": "org/base"})
    fine_tune(job, report)

    run = Run.open(job.path / "run")
    lines = [data for data in report.data if data.get("tag") in set(Tag) and "type" not in data]
    written = [{**event.values, "tag": event.tag.value, "step": event.step} for event in run.events()]
    checkpoints = [{"tag": "checkpoint", "step": step, "checkpoint": f"{JOB}:step-{step}"} for step in (1, 2)]
    assert lines == [*written, *checkpoints]
    assert report.data[-1] == {"model": JOB}

    uploads = job.path / "uploads"
    assert (uploads / "model" / "config.json").is_file()
    kept = {path.name for path in (uploads / "checkpoint-1").iterdir()}
    assert kept >= {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"}
    assert not kept & {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"}
    # The base by the name others know it by, not by this worker's folder.
    assert json.loads((uploads / "checkpoint-1" / ADAPTER_CONFIG).read_text())[BASE] == "org/base"

    sampled = [data for data in report.data if data.get("type") == "samples"]
    assert [(data["step"], data["tag"]) for data in sampled] == [(0, "poems"), (1, "poems"), (2, "poems")]
    row = report.rows(sampled[0]["file"])[0]
    assert row["messages"] == [{"role": "user", "content": ROWS[0][0]}]
    assert row["completion"] == row["answer"]
    rows = [json.loads(line) for line in (uploads / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum(one["tag"] == "poems" for one in rows) == 6

    scored = [data for data in report.data if data.get("type") == "logprobs"]
    assert [data["step"] for data in scored] == [0, 1, 2]
    tokens = json.loads(report.files[scored[-1]["file"]])
    assert [row["messages"][-1]["content"] for row in tokens] == [answer for _, answer in ROWS[:2]]
    logps = [token["logp"] for row in tokens for token in row["tokens"]]
    assert_close(scored[-1]["held"], -sum(logps) / len(logps), rtol=1e-5, atol=1e-5)
    # Merging rounds: the trained adapter and the merged weights differ in the last bits.
    loaded = load_frozen(str(uploads / "model"))
    answers = AnswerSet.read("held", prompts, ChatTemplate(loaded.tokenizer), loaded.model)
    direct = response_log_probs(loaded.model, answers.pairs)
    assert_close(logps, [float(value) for row in direct for value in row], rtol=1e-4, atol=1e-4)


def test_a_job_trains_what_a_run_of_its_config_trains(tmp_path: Path) -> None:
    job = job_folder(tmp_path / "job", job_params(tmp_path))
    fine_tune(job, ReportLog())
    alone = run_small(tmp_path, "alone", **OPTIONS)
    # The last checkpoint is the same adapter, on the same base.
    last = load_frozen(str(job.path / "uploads" / "checkpoint-2")).model
    assert_same_bits(dict(last.state_dict()), dict(load_frozen(str(alone.model_path)).model.state_dict()))
    assert_same_bits(load_file(job.path / "uploads" / "adapter" / "adapter_model.safetensors"), trained_weights(alone))


def test_a_checkpoint_of_sdft_comes_without_its_teacher_and_with_the_template_it_was_trained_with(
    tmp_path: Path,
) -> None:
    template = CHATML.replace("assistant", "helper")
    params = job_params(tmp_path, loss="sdft", max_steps=1, chat_template=template, is_peft=False)
    job = job_folder(tmp_path / "job", params)
    fine_tune(job, ReportLog())
    checkpoint = job.path / "uploads" / "checkpoint-1"
    assert (job.path / "run" / "checkpoint-1" / TEACHER_FILE).is_file()
    assert [path.name for path in checkpoint.glob("*.safetensors")] == ["model.safetensors"]
    assert (checkpoint / "chat_template.jinja").read_text(encoding="utf-8") == template
    assert load_frozen(str(checkpoint)).tokenizer.get_chat_template() == template


def test_a_job_that_fails_reports_its_end_and_keeps_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export fails after two checkpoints: both are kept and named, no model is."""

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tutelage.training.export._save_tokenizer", full)
    report = ReportLog()
    job = job_folder(tmp_path / "job", job_params(tmp_path))
    with pytest.raises(Exception, match="the model could not be written"):
        fine_tune(job, report)
    assert [data.get("checkpoint") for data in report.data[-2:]] == [f"{JOB}:step-1", f"{JOB}:step-2"]
    assert [data["step"] for data in report.data if data.get("tag") == "end"] == [2]
    assert not any("model" in data for data in report.data)
    left = sorted(path.name for path in (job.path / "uploads").iterdir())
    assert left == ["checkpoint-1", "checkpoint-2", "events.jsonl", "log.txt", "run.json"]


def test_options_that_cannot_work_are_the_sentence_of_the_config(tmp_path: Path) -> None:
    job = job_folder(tmp_path / "job", job_params(tmp_path) | {"loss": "sfd"})
    with pytest.raises(ConfigError, match="'sfd' is not an objective"):
        fine_tune(job, ReportLog())


def test_a_run_that_was_given_up_stops_training(tmp_path: Path) -> None:
    """The server refuses the first event: the process gets SIGTERM as from its worker, long before step 100,000."""
    code = (
        "from tests.unit.test_worker_programs import ReportLog\n"
        "from tutelage.errors import FencedError\n"
        "from tutelage.worker.programs.fine_tuning import fine_tune\n"
        "from tutelage.worker.programs.program import run_program\n"
        "def fenced(number):\n"
        "    raise FencedError('run-1 was given up')\n"
        "run_program(lambda job: fine_tune(job, ReportLog(trouble=fenced)))\n"
    )
    assert end_of(tmp_path, code, signal_it=False) == 130


def test_sigterm_stops_training_after_the_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    code = (
        "from tests.unit.test_worker_programs import ReportLog\n"
        "from tutelage.worker.programs.fine_tuning import fine_tune\n"
        "from tutelage.worker.programs.program import run_program\n"
        "run_program(lambda job: fine_tune(job, ReportLog()))\n"
    )
    assert end_of(tmp_path, code, signal_it=True) == 130
    assert "stopped after step" in (tmp_path / "job" / "error.txt").read_text(encoding="utf-8")
    (checkpoint,) = (tmp_path / "job" / "uploads").glob("checkpoint-*")
    assert (checkpoint / "adapter_model.safetensors").is_file()


def end_of(folder: Path, code: str, *, signal_it: bool) -> int:
    """The exit code of a job of 100,000 steps. signal_it: SIGTERM as soon as it trains."""
    save_tiny_model(folder / "tiny")
    params = job_params(folder, max_steps=100_000, save_steps=100_000, eval_every_n_steps=100_000)
    job = job_folder(folder / "job", params)
    environment = os.environ | {"TUTELAGE_JOB_ID": JOB, "TUTELAGE_RUN_ID": "run-1", "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=job.path, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            if signal_it:
                for line in process.stderr:
                    if "step 3/" in line:
                        break
                os.kill(process.pid, signal.SIGTERM)
            process.stderr.read()
            return process.wait(60)
        finally:
            process.kill()


def test_a_given_up_run_is_said_to_be_so(tmp_path: Path) -> None:
    """In a process whose SIGTERM is ignored, `finish` raises what the server said."""

    def fenced(number: int) -> None:
        raise FencedError("run-1 was given up")

    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        follower = RunFollower(tmp_path, outbox_for(ReportLog(trouble=fenced)), tags=(), scratch=tmp_path)
        EventLog(tmp_path / "events.jsonl").write(0, Tag.START, {"from_step": 0})
        follower.start()
        with pytest.raises(FencedError, match="given up"):
            follower.finish(5)
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_a_step_that_takes_too_long_gets_a_second_signal_and_a_short_one_does_not() -> None:
    """The first SIGTERM lets training end its step; the second stops it at once."""
    received = threading.Semaphore(0)
    previous = signal.signal(signal.SIGTERM, lambda number, frame: received.release())
    try:
        with stopping_within(0.05):
            os.kill(os.getpid(), signal.SIGTERM)
            assert received.acquire(timeout=10)
            assert received.acquire(timeout=10)
        with stopping_within(60):
            os.kill(os.getpid(), signal.SIGTERM)
            assert received.acquire(timeout=10)
        assert not received.acquire(blocking=False)
    finally:
        signal.signal(signal.SIGTERM, previous)
