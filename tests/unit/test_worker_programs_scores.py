"""logprob, multiple_choice and inspect_ai jobs on the tiny model, against its own logits."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tests.small_runs import ROWS, save_tiny_model, write_rows
from tests.tiny import tiny_model, tiny_tokenizer
from tests.unit.test_worker_programs import ReportLog, away, job_folder, write_lines
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Message
from tutelage.errors import ConfigError, DataError
from tutelage.models import response_log_probs
from tutelage.worker.programs.inspect_ai import TaskOptions, parsed_options, run_task
from tutelage.worker.programs.logprob import score_answers
from tutelage.worker.programs.multiple_choice import choose

TOKENIZER = tiny_tokenizer()
TEMPLATE = ChatTemplate(TOKENIZER)
MODEL = tiny_model(TOKENIZER)


def pair(question: str, answer: str) -> tuple[list[int], list[int]]:
    turns = [Message("user", question), Message("assistant", answer)]
    return TEMPLATE.encode_prompt(turns[:1]), TEMPLATE.encode_response(turns)


def by_hand(question: str, answer: str) -> list[float]:
    """log p of every answer token from one plain forward pass."""
    prompt, response = pair(question, answer)
    with torch.no_grad():
        logits_TV = MODEL(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits_TV, dim=-1).gather(1, torch.tensor(response)[:, None])[:, 0].tolist()


def test_loss_and_logp_are_those_of_the_library_and_of_a_forward_pass(tmp_path: Path) -> None:
    """loss: all tokens of all answers have the same weight. logp: all answers have."""
    params = {"model": str(save_tiny_model(tmp_path / "tiny")), "dataset": str(write_rows(tmp_path / "rows.jsonl"))}
    report = ReportLog(trouble=away(2))
    score_answers(job_folder(tmp_path / "job", params | {"batch_size": 3}), report)
    (event,) = report.data
    direct = response_log_probs(MODEL, [pair(*row) for row in ROWS])
    flat = torch.cat(direct).double()
    assert_close(event["loss"], -float(flat.mean()), rtol=1e-6, atol=1e-6)
    assert_close(event["logp"], float(flat.sum()) / len(ROWS), rtol=1e-6, atol=1e-6)
    rows = report.rows(event["file"])
    assert [row["messages"][-1]["content"] for row in rows] == [answer for _, answer in ROWS]
    for row, (question, answer) in zip(rows, ROWS, strict=True):
        assert [token["token_id"] for token in row["tokens"]] == pair(question, answer)[1]
        assert_close([token["logp"] for token in row["tokens"]], by_hand(question, answer), rtol=1e-4, atol=1e-5)
        assert_close(row["logp"], math.fsum(by_hand(question, answer)), rtol=1e-5, atol=1e-4)


def test_bad_rows_of_a_logprob_job_are_named(tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": "Hi"}]}])
    params = {"model": str(save_tiny_model(tmp_path / "tiny")), "dataset": str(rows)}
    with pytest.raises(DataError, match=r"rows.jsonl:1"):
        score_answers(job_folder(tmp_path / "job", params), ReportLog())


def test_the_most_probable_choice_is_the_answer(tmp_path: Path) -> None:
    choices = ["yes", "no", "Blue.", "The capital of France is Paris."]
    questions = [question for question, _ in ROWS]
    sums = [[math.fsum(by_hand(question, choice)) for choice in choices] for question in questions]
    chosen = [max(range(len(choices)), key=values.__getitem__) for values in sums]
    right = [*chosen[:6], *((index + 1) % len(choices) for index in chosen[6:])]
    data = write_lines(
        tmp_path / "rows.jsonl",
        [
            {"prompt": question, "choices": choices, "answer": choices[index]}
            for question, index in zip(questions, right, strict=True)
        ],
    )
    params = {"model": str(save_tiny_model(tmp_path / "tiny")), "dataset": str(data)}
    report = ReportLog()
    choose(job_folder(tmp_path / "job", params), report)
    (event,) = report.data
    assert event["accuracy"] == 6 / 8
    mean = math.fsum(values[index] for values, index in zip(sums, right, strict=True)) / len(right)
    assert_close(event["logp"], mean, rtol=1e-5, atol=1e-4)
    rows = report.rows(event["file"])
    assert [row["answer"] for row in rows] == [choices[index] for index in chosen]
    assert [row["score"] for row in rows] == [1.0] * 6 + [0.0] * 2


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (" ", TaskOptions()),
        ("--limit 5 --temperature=0.7", TaskOptions(limit=5, temperature=0.7)),
        (
            "--max-tokens 9 --seed 3 --max-connections 4",
            TaskOptions(max_tokens=9, seed=3, max_connections=4),
        ),
    ],
)
def test_options_are_read_as_inspect_eval_does(text: str, options: TaskOptions) -> None:
    assert parsed_options(text) == options


@pytest.mark.parametrize(
    ("text", "why"), [("--epochs 3", "--epochs"), ("--limit many", "invalid int value"), ("--limit '5", "No closing")]
)
def test_an_option_that_the_bridge_lacks_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parsed_options(text)


@pytest.mark.skipif(importlib.util.find_spec("inspect_ai") is not None, reason="inspect-ai is installed")
def test_without_inspect_the_job_says_what_to_install(tmp_path: Path) -> None:
    params = {"model": str(save_tiny_model(tmp_path / "tiny")), "eval_name": "tasks.py@answers"}
    with pytest.raises(ConfigError, match=r"pip install 'tutelage\[inspect\]'"):
        run_task(job_folder(tmp_path / "job", params), ReportLog())


def test_a_task_of_inspect_reports_its_metrics_and_leaves_log_and_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the bridge gives is reported as it is; the bridge has tests of its own where Inspect is installed."""
    from tutelage.evaluation import InspectItem, InspectMetric, InspectResult

    asked: dict[str, Any] = {}

    def bridge(model: Any, template: Any, task: str, *, log_folder: Path, **options: Any) -> InspectResult:
        asked.update(options, task=task)
        log_folder.mkdir(parents=True)
        (log_folder / "log.json").write_text("{}", encoding="utf-8")
        item = InspectItem([{"role": "user", "content": "q"}], "a", "a", 1.0, False, "answers:1")
        metrics = (InspectMetric("match/accuracy", 0.75, 0.1, 4), InspectMetric("f1/mean", 0.5, None, 4))
        return InspectResult("answers", metrics, (item,), log_folder / "log.json")

    monkeypatch.setattr("tutelage.worker.programs.inspect_ai.check_inspect", lambda task: None)
    monkeypatch.setattr("tutelage.worker.programs.inspect_ai.evaluate_inspect", bridge)
    params = {
        "model": str(save_tiny_model(tmp_path / "tiny")),
        "eval_name": "tasks.py@answers",
        "options": "--limit 4 --temperature 0.5",
    }
    report = ReportLog()
    job = job_folder(tmp_path / "job", params)
    run_task(job, report)
    assert report.data == [{"task": "answers", "match/accuracy": 0.75, "f1/mean": 0.5}]
    # The tiny model has 2,048 positions, half of which an answer may take.
    assert asked == {
        "task": "tasks.py@answers",
        "limit": 4,
        "max_new_tokens": 1024,
        "temperature": 0.5,
        "batch_size": 32,
        "seed": 0,
    }
    left = sorted(str(path.relative_to(job.uploads)) for path in job.uploads.rglob("*") if path.is_file())
    assert left == ["inspect/log.json", "samples.jsonl"]
