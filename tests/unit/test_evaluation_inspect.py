"""Inspect on a tiny model: its answers against greedy rollouts, its scores by hand, its logs, its errors.

Tasks are files written here; nothing is fetched.
"""

import gc
import importlib.util
import json
import math
import os
import random
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Message
from tutelage.errors import ConfigError, DataError, OutputError
from tutelage.evaluation import InspectResult, evaluate_inspect, read_suite, write_items
from tutelage.models import LoadedModel
from tutelage.rollouts import generate

pytest.importorskip("inspect_ai", reason="inspect-ai is not among the pinned packages: pip install inspect-ai")

# Inspect leaves its streams to the garbage collector, which says so where warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")

TOKENIZER = tiny_tokenizer()
TEMPLATE = ChatTemplate(TOKENIZER)
MODEL = tiny_model(TOKENIZER)
END = TOKENIZER.eos_token_id

FILE = """
from inspect_ai import Task, task
from inspect_ai.dataset import json_dataset
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import exact, includes
from inspect_ai.solver import generate, system_message


@task
def answers():
    return Task(dataset=json_dataset("rows.jsonl"), solver=generate(), scorer=[exact(), includes()])


@task
def polite():
    return Task(dataset=json_dataset("rows.jsonl"), solver=[system_message("Be polite."), generate()], scorer=exact())


@task
def stopped():
    config = GenerateConfig(stop_seqs=["STOP"])
    return Task(dataset=json_dataset("rows.jsonl"), solver=generate(), scorer=exact(), config=config)


@task
def twice():
    return Task(dataset=json_dataset("rows.jsonl"), solver=generate(), scorer=exact(), epochs=2)
"""
QUESTIONS = ["What is two and two?", "The", "What is the capital of France?", "Rome " * 20, "no"]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Here and not in the middle of another module's tests, which have no such filter."""
    yield
    gc.collect()


def greedy(question: str, *before: Message, count: int = 6) -> str:
    prompt = TEMPLATE.encode_prompt([*before, Message("user", question)])
    ids = generate(MODEL, [prompt], pad_token_id=END, stop_ids=[END], max_new_tokens=count, temperature=0.0)[0]
    return TOKENIZER.decode(ids, skip_special_tokens=True).strip()


def write_task(folder: Path, text: str = FILE, targets: list[str] | None = None) -> Path:
    targets = targets or ["never this"] * len(QUESTIONS)
    rows = [{"input": question, "target": target} for question, target in zip(QUESTIONS, targets, strict=True)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "tasks.py"
    path.write_text(text)
    return path


def evaluated(path: Path, name: str = "answers", **options: Any) -> InspectResult:
    options = {"max_new_tokens": 6, "log_folder": path.parent / "logs"} | options
    return evaluate_inspect(MODEL, TEMPLATE, f"{path}@{name}", **options)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_answers_are_greedy_rollouts_and_scores_are_by_hand(tmp_path: Path, batch_size: int):
    """Two of five targets are what the model says: 0.4, with a standard error of s/√5."""
    right = [greedy(question) for question in QUESTIONS]
    assert len(set(right)) > 2
    targets = [right[0], "no", "no", right[3], "no"]
    result = evaluated(write_task(tmp_path, targets=targets), batch_size=batch_size)
    assert [item.answer for item in result.items] == right
    assert [item.score for item in result.items] == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert [item.target for item in result.items] == targets
    assert result.items[1].prompt == [{"role": "user", "content": "The"}]
    metrics = {metric.name: metric for metric in result.metrics}
    assert metrics["exact/mean"].value == pytest.approx(0.4)
    assert metrics["exact/mean"].n == 5
    assert metrics["exact/mean"].stderr == pytest.approx(statistics.stdev([1, 0, 0, 1, 0]) / math.sqrt(5))
    assert [item.place for item in result.items] == [f"answers:{number}" for number in range(1, 6)]


def test_a_system_message_and_a_limit(tmp_path: Path):
    result = evaluated(write_task(tmp_path), "polite", limit=2)
    system = Message("system", "Be polite.")
    assert [item.answer for item in result.items] == [greedy(question, system) for question in QUESTIONS[:2]]


def test_a_stop_text_cuts_the_answer(tmp_path: Path):
    answer = greedy(QUESTIONS[0], count=30)
    stop = answer[4:6]
    path = write_task(tmp_path, FILE.replace('"STOP"', repr(stop)))
    item = evaluated(path, "stopped", limit=1, max_new_tokens=30).items[0]
    assert (item.answer, item.truncated) == (answer.partition(stop)[0], False)


def test_sampled_answers_depend_on_the_seed_alone_and_differ_between_epochs(tmp_path: Path):
    path = write_task(tmp_path)

    def answers(seed: int, batch_size: int) -> list[str]:
        result = evaluated(path, "twice", temperature=1.0, seed=seed, batch_size=batch_size)
        return [item.answer for item in result.items]

    first = answers(1, 32)
    assert len(first) == 10
    assert first[:5] != first[5:]
    assert sorted(answers(1, 2)) == sorted(first)  # which epoch asks first is Inspect's to say
    assert answers(2, 32) != first


def test_requests_that_come_together_are_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first request finds nobody waiting; the others gather while it is answered."""
    from tutelage.evaluation import inspect_model

    made: list[Any] = []
    make = inspect_model.in_memory_model

    def kept(*arguments: Any) -> Any:
        made.append(make(*arguments))
        return made[0]

    monkeypatch.setattr(inspect_model, "in_memory_model", kept)
    evaluated(write_task(tmp_path))
    assert sum(made[0].batches) == 5
    assert len(made[0].batches) < 5


def test_nothing_is_left_behind(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Neither in the model, random states, environment and terminal, nor in home and working folder."""
    for name in ("home", "work", "task"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    path = write_task(tmp_path / "task")
    model = tiny_model(TOKENIZER).train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    environment = dict(os.environ)
    folder = tmp_path / "logs"
    result = evaluate_inspect(
        model, TEMPLATE, f"{path}@answers", log_folder=folder, max_new_tokens=3, temperature=1.0, limit=2
    )
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])
    assert dict(os.environ) == environment
    assert Path.cwd() == tmp_path / "work"
    assert capfd.readouterr() == ("", "")
    assert list((tmp_path / "home").iterdir()) == []
    assert list((tmp_path / "work").iterdir()) == []
    assert list(folder.iterdir()) == [result.log]
    assert json.loads(result.log.read_text())["results"]["completed_samples"] == 2


def test_rows_of_a_result_file(tmp_path: Path):
    result = evaluated(write_task(tmp_path), limit=1)
    write_items(tmp_path / "out.jsonl", result.items)
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {
        "prompt": [{"role": "user", "content": QUESTIONS[0]}],
        "answer": greedy(QUESTIONS[0]),
        "target": "never this",
        "score": 0.0,
        "truncated": True,
        "place": "answers:1",
    }


def refusal(kind: type[Exception], task: object, folder: Path, **options: Any) -> str:
    """The one sentence of it."""
    with pytest.raises(kind) as found:
        evaluate_inspect(MODEL, TEMPLATE, str(task), log_folder=folder, **options)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_what_is_no_task(tmp_path: Path):
    logs = tmp_path / "logs"
    path = write_task(tmp_path)
    assert re.search(
        r"there is no file .*none\.py; check the path", refusal(ConfigError, tmp_path / "none.py@answers", logs)
    )
    assert re.search(r"has no task 'answer'; did you mean 'answers'", refusal(ConfigError, f"{path}@answer", logs))
    assert re.search(r"has the tasks answers, polite, stopped, twice; name one", refusal(ConfigError, path, logs))
    assert re.search(r"task 'no_such/task' is not registered", refusal(ConfigError, "no_such/task", logs))
    path.write_text("x = 1\n")
    assert re.search(r"has no task; put @task", refusal(ConfigError, path, logs))


def test_tasks_that_fail(tmp_path: Path):
    logs = tmp_path / "logs"
    path = write_task(tmp_path, FILE.replace("rows.jsonl", "none.jsonl"))
    assert re.search(r"its data cannot be read \(.*none\.jsonl", refusal(DataError, f"{path}@answers", logs))
    path = write_task(tmp_path, FILE.replace("scorer=[exact(), includes()]", "scorer=[no_such_scorer()]"))
    assert re.search(
        r"cannot be run \(name 'no_such_scorer' is not defined", refusal(ConfigError, f"{path}@answers", logs)
    )
    path = write_task(
        tmp_path,
        FILE.replace("generate, system", "generate, use_tools, system")
        .replace("solver=generate()", "solver=[use_tools(bash()), generate()]")
        .replace("from inspect_ai.model", "from inspect_ai.tool import bash\nfrom inspect_ai.model"),
    )
    assert re.search(r"the task offers the tool 'bash'", refusal(ConfigError, f"{path}@answers", logs))
    path = write_task(tmp_path)
    assert re.search(
        r"\d+ tokens, but the model has 2048 positions",
        refusal(DataError, f"{path}@answers", logs, max_new_tokens=4000),
    )
    (tmp_path / "file").write_text("")
    assert re.search(r"cannot be made", refusal(OutputError, f"{path}@answers", tmp_path / "file"))


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert re.search(
        r"inspect-ai is not installed; pip install 'tutelage\[inspect\]'", refusal(ConfigError, "x", tmp_path / "logs")
    )
    assert not (tmp_path / "logs").exists()


def test_a_task_in_a_suite_is_a_measure(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(FILE, encoding="utf-8")
    answer = TOKENIZER.decode(
        generate(
            MODEL,
            [TEMPLATE.encode_prompt([Message("user", QUESTIONS[0])])],
            pad_token_id=END,
            stop_ids=TEMPLATE.end_of_turn_ids,
            max_new_tokens=6,
            temperature=0.0,
        )[0],
        skip_special_tokens=True,
    )
    rows = [{"input": QUESTIONS[0], "target": answer.strip()}, {"input": QUESTIONS[1], "target": "never this"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {"kind": "inspect", "task": "tasks.py@answers", "max_new_tokens": 6, "log_folder": "logs"}
    (evaluation,) = read_suite({"task": [options]}, tmp_path, "suite.yaml")
    evaluation.check()
    outcome = evaluation.run(LoadedModel(MODEL, TOKENIZER, "tiny"), TEMPLATE)
    assert outcome.scores == {"inspect": (1.0, 0.0)}
    assert outcome.failed == {}
    assert outcome.rows[0]["answer"] == answer.strip()
    assert list((tmp_path / "logs").iterdir())


def test_a_task_is_looked_for_before_a_model_is_loaded(tmp_path: Path) -> None:
    """`check` needs no model."""
    (tmp_path / "tasks.py").write_text(FILE, encoding="utf-8")
    (evaluation,) = read_suite({"task": [{"kind": "inspect", "task": "tasks.py@answer"}]}, tmp_path, "suite.yaml")
    with pytest.raises(ConfigError, match="has no task 'answer'; did you mean 'answers'"):
        evaluation.check()
