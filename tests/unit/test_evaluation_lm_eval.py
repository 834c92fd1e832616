"""lm-evaluation-harness on a tiny model: its numbers against the model's own, its files, its errors.

Tasks are local files with local data, written here; nothing is fetched.
"""

import importlib.util
import json
import math
import random
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Message
from tutelage.errors import ConfigError, DataError
from tutelage.evaluation import Role, Unit, evaluate_lm_eval, read_suite, write_items
from tutelage.models import LoadedModel, response_log_probs, response_scores
from tutelage.rollouts import generate

TOKENIZER = tiny_tokenizer()
TEMPLATE = ChatTemplate(TOKENIZER)
MODEL = tiny_model(TOKENIZER)
END = TOKENIZER.eos_token_id

CAPITALS = [
    {"question": "What is the capital of France?", "choices": ["Paris", "Rome", "Oslo"], "answer": 0},
    {"question": "Italy", "choices": ["Paris", "Rome", "a longer one"], "answer": 1},
    {"question": "The capital of Norway is", "choices": ["no", "Rome", "Oslo"], "answer": 2},
    {"question": "What is two and two?", "choices": ["four", "two"], "answer": 0},
]
CHOICE = {
    "task": "capitals_here",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/capitals.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
ANSWER = {
    "task": "answers_here",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/answers.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{target}}",
    "generation_kwargs": {"until": [], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def write_task(folder: Path, base: dict[str, Any], rows: list[dict[str, Any]] | None, **changes: Any) -> Path:
    content = base | changes
    if rows is not None:
        data = folder / next(iter(content["dataset_kwargs"]["data_files"].values()))
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / f"{content['task']}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def choice_log_prob(question: str, choice: str) -> float:
    """Straight from the logits, one row at a time: log p(' choice' | question)."""
    prompt = ids_of(question)
    answer = ids_of(f"{question} {choice}")[len(prompt) :]
    with torch.no_grad():
        logp_TV = MODEL(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return sum(float(logp_TV[len(prompt) - 1 + step, token]) for step, token in enumerate(answer))


def greedy(prompt: list[int], count: int = 6) -> list[int]:
    return generate(MODEL, [prompt], pad_token_id=END, stop_ids=[END], max_new_tokens=count, temperature=0.0)[0]


@pytest.mark.parametrize("batch_size", [1, 32])
def test_multiple_choice_is_the_model_s_own_log_probability(tmp_path: Path, batch_size: int):
    path = write_task(tmp_path, CHOICE, CAPITALS)
    result = evaluate_lm_eval(MODEL, TEMPLATE, [str(path)], batch_size=batch_size)
    expected = [[choice_log_prob(row["question"], choice) for choice in row["choices"]] for row in CAPITALS]
    (task,) = result.tasks
    for item, log_probs, row in zip(task.items, expected, CAPITALS, strict=True):
        assert item.log_probs == pytest.approx(log_probs, abs=1e-4)
        best = log_probs.index(max(log_probs))
        assert (item.prompt, item.answer, item.target) == (
            row["question"],
            row["choices"][best],
            row["choices"][row["answer"]],
        )
        assert item.score == float(best == row["answer"])
    scores = [item.score for item in task.items]
    assert 0 < sum(scores) < len(scores), "the model must be right and wrong for this to test anything"
    (accuracy,) = task.metrics
    assert (accuracy.name, accuracy.n, accuracy.higher_is_better) == ("acc", 4, True)
    assert accuracy.value == pytest.approx(statistics.mean(scores))
    assert accuracy.stderr == pytest.approx(statistics.stdev(scores) / math.sqrt(4))
    assert [item.place for item in result.items] == [f"capitals_here:{number}" for number in range(4)]


def test_generated_answers_are_greedy_rollouts(tmp_path: Path):
    """One target is what the model says, one is not: exact match is 1/2."""
    questions = ["What is two and two?", "The"]
    answers = [TOKENIZER.decode(greedy(ids_of(text)), skip_special_tokens=True) for text in questions]
    rows = [{"question": questions[0], "target": answers[0]}, {"question": questions[1], "target": "never this"}]
    path = write_task(tmp_path, ANSWER, rows)
    (task,) = evaluate_lm_eval(MODEL, TEMPLATE, [str(path)]).tasks
    assert [item.answer for item in task.items] == answers
    assert [item.score for item in task.items] == [1.0, 0.0]
    assert [item.target for item in task.items] == [answers[0], "never this"]
    assert (task.metrics[0].name, task.metrics[0].value) == ("exact_match", 0.5)


def test_a_stop_text_cuts_the_answer_and_ends_the_sampling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The text up to the third token's text, which is the same whether or not sampling went on behind it."""
    question = "What is two and two?"
    tokens = greedy(ids_of(question), 40)
    text = TOKENIZER.decode(tokens, skip_special_tokens=True)
    stop = TOKENIZER.decode([tokens[2]])
    assert stop.strip()
    assert stop in text
    path = write_task(
        tmp_path,
        ANSWER,
        [{"question": question, "target": "x"}],
        generation_kwargs={"until": [stop], "max_gen_toks": 40},
    )
    forwards = 0
    original = MODEL.forward

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal forwards
        forwards += 1
        return original(*arguments, **options)

    monkeypatch.setattr(MODEL, "forward", counted)
    (item,) = evaluate_lm_eval(MODEL, TEMPLATE, [str(path)]).items
    assert item.answer == text.partition(stop)[0]
    assert forwards <= 3


def test_with_a_chat_template_the_prompt_is_the_one_of_training(tmp_path: Path):
    question = "What is two and two?"
    path = write_task(tmp_path, ANSWER, [{"question": question, "target": "x"}])
    (item,) = evaluate_lm_eval(MODEL, TEMPLATE, [str(path)], apply_chat_template=True).items
    prompt = TEMPLATE.encode_prompt([Message("user", question)])
    assert ids_of(item.prompt) == prompt
    assert item.answer == TOKENIZER.decode(greedy(prompt), skip_special_tokens=True)


def test_sampled_answers_depend_on_the_seed_alone(tmp_path: Path):
    sampling = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 6}
    rows = [{"question": "The " * number, "target": "x"} for number in (1, 9, 4)]
    path = str(write_task(tmp_path, ANSWER, rows, generation_kwargs=sampling))

    def answers(seed: int, batch_size: int) -> list[str]:
        return [
            item.answer for item in evaluate_lm_eval(MODEL, TEMPLATE, [path], seed=seed, batch_size=batch_size).items
        ]

    first = answers(1, 3)
    assert answers(1, 1) == first
    assert answers(2, 3) != first


def test_perplexity_of_whole_texts(tmp_path: Path):
    """Bits and words: exp(−Σ log p / words), with the end-of-text token in front of the first word."""
    texts = ["What is two", "The capital of France is Paris."]
    path = write_task(
        tmp_path,
        ANSWER,
        [{"text": text} for text in texts],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        generation_kwargs=None,
        metric_list=[{"metric": "word_perplexity"}],
    )
    (task,) = evaluate_lm_eval(MODEL, TEMPLATE, [str(path)]).tasks
    log_probs = [float(row.sum()) for row in response_log_probs(MODEL, [([END], ids_of(text)) for text in texts])]
    assert task.metrics[0].value == pytest.approx(math.exp(-sum(log_probs) / 9), rel=1e-4)
    assert [item.score for item in task.items] == [None, None]


def test_greedy_flag_of_a_response():
    prompt = ids_of("What is two and two?")
    response = greedy(prompt)
    other = [*response[:-1], response[-1] - 1]
    scores = response_scores(MODEL, [(prompt, response), (prompt, other)])
    assert [score.greedy for score in scores] == [True, False]


def test_limit_few_shot_and_names_from_a_folder(tmp_path: Path):
    """With one example in front, it is the one document of the few-shot split; the second task has data beside it."""
    shots = {"fewshot_split": "shots", "dataset_kwargs": {"data_files": {"test": "c.jsonl", "shots": "s.jsonl"}}}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "s.jsonl").write_text(json.dumps({"question": "Q", "choices": ["A", "B"], "answer": 1}) + "\n")
    write_task(tmp_path / "in", CHOICE, CAPITALS, **shots)
    write_task(tmp_path / "in", ANSWER, [{"question": "Q", "target": "x"}])
    folder = tmp_path / "in"
    result = evaluate_lm_eval(MODEL, TEMPLATE, ["capitals_here"], include_path=folder, limit=2, num_fewshot=1)
    assert [item.prompt for item in result.items] == [
        "Q B\n\nWhat is the capital of France?",
        "Q B\n\nItaly",
    ]
    both = evaluate_lm_eval(MODEL, TEMPLATE, ["answers_here", "capitals_here"], include_path=folder, limit=1)
    assert [(task.name, task.metrics[0].n) for task in both.tasks] == [("answers_here", 1), ("capitals_here", 1)]


def test_a_group_has_the_mean_of_its_tasks(tmp_path: Path):
    write_task(tmp_path, CHOICE, CAPITALS, task="first")
    write_task(tmp_path, CHOICE, CAPITALS[:2], task="second", dataset_kwargs={"data_files": {"test": "two.jsonl"}})
    group = tmp_path / "both.yaml"
    means = [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}]
    group.write_text(yaml.safe_dump({"group": "both", "task": ["first", "second"], "aggregate_metric_list": means}))
    tasks = {task.name: task for task in evaluate_lm_eval(MODEL, TEMPLATE, [str(group)]).tasks}
    scores = [item.score for name in ("first", "second") for item in tasks[name].items]
    assert len(scores) == 6
    assert tasks["both"].metrics[0].value == pytest.approx(statistics.mean(scores))
    assert tasks["both"].items == ()


def test_nothing_is_left_behind(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Neither in the model, nor in random states, nor on the terminal, nor in the folder."""
    home = tmp_path / "work"
    home.mkdir()
    monkeypatch.chdir(home)
    (tmp_path / "task").mkdir()
    path = write_task(tmp_path / "task", CHOICE, CAPITALS)
    model = tiny_model(TOKENIZER).train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    side = TOKENIZER.padding_side
    evaluate_lm_eval(model, TEMPLATE, [str(path)], seed=5)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])
    assert TOKENIZER.padding_side == side
    assert capfd.readouterr() == ("", "")
    assert list(home.iterdir()) == []
    assert sorted(file.name for file in (tmp_path / "task").rglob("*")) == [
        "capitals.jsonl",
        "capitals_here.yaml",
        "data",
    ]


def test_rows_of_a_result_file(tmp_path: Path):
    path = write_task(tmp_path, ANSWER, [{"question": "The", "target": "x"}])
    result = evaluate_lm_eval(MODEL, TEMPLATE, [str(path)])
    write_items(tmp_path / "out.jsonl", result.items)
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {
        "prompt": "The",
        "answer": TOKENIZER.decode(greedy(ids_of("The")), skip_special_tokens=True),
        "target": "x",
        "score": 0.0,
        "log_probs": [],
        "place": "answers_here:0",
    }


def refusal(kind: type[Exception], task: object, **options: Any) -> str:
    """The one sentence of it."""
    with pytest.raises(kind) as found:
        evaluate_lm_eval(MODEL, TEMPLATE, [str(task)], **options)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_what_is_no_task(tmp_path: Path):
    with pytest.raises(ConfigError, match="no task is given"):
        evaluate_lm_eval(MODEL, TEMPLATE, [])
    assert re.search(
        r"task 'helaswag' is not one of lm-eval .*; did you mean 'hellaswag'", refusal(ConfigError, "helaswag")
    )
    assert re.search(
        r"include_path '.*none' is no folder", refusal(ConfigError, "hellaswag", include_path=tmp_path / "none")
    )
    assert re.search(r"none\.yaml' cannot be read \(.*No such file", refusal(ConfigError, tmp_path / "none.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("task: [1\nmore: 2\n")
    assert re.search(r"broken\.yaml' is no valid YAML \(line 2: ", refusal(ConfigError, broken))
    broken.write_text("- a list\n")
    assert re.search("has neither 'task' nor 'group'", refusal(ConfigError, broken))
    write_task(tmp_path, CHOICE, CAPITALS, task="broken", no_such_option=1)
    assert re.search(
        r"broken\.yaml' cannot be made \(.*no_such_option.*\); mend its YAML", refusal(ConfigError, broken)
    )
    write_task(tmp_path, CHOICE, CAPITALS, task="broken", doc_to_choice="{{choices")
    assert re.search(
        r"broken\.yaml' cannot be made \(.*TemplateSyntaxError\); mend its YAML", refusal(ConfigError, broken)
    )
    write_task(tmp_path, ANSWER, [{"question": "Q", "target": "x"}], generation_kwargs={"num_beams": 4})
    assert re.search(
        r"'answers_here': generation_kwargs has 'num_beams'", refusal(DataError, tmp_path / "answers_here.yaml")
    )


def test_data_that_is_not_there(tmp_path: Path):
    path = write_task(tmp_path, CHOICE, None)
    assert re.search(r"there is no data file .*/data/capitals\.jsonl; mend 'data_files'", refusal(DataError, path))
    path = write_task(tmp_path, CHOICE, None, dataset_path="nobody/nothing", dataset_kwargs={})
    assert re.search(r"its data set cannot be read \(.*nobody/nothing.*\); give files", refusal(DataError, path))
    path = write_task(tmp_path, CHOICE, [])
    assert re.search(r"its data set cannot be read \(", refusal(DataError, path))


def test_a_row_that_is_too_long_is_not_cut(tmp_path: Path):
    path = write_task(tmp_path, ANSWER, [{"question": "The " * 3000, "target": "x"}])
    assert re.search(r"answers_here:0: \d+ tokens, but the model has 2048 positions", refusal(DataError, path))
    path = write_task(tmp_path, CHOICE, [{"question": "The " * 3000, "choices": ["a", "b"], "answer": 0}])
    assert re.search(r"the request ' a': \d+ tokens, but the model has 2048 positions", refusal(DataError, path))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert re.search(r"lm-eval is not installed; pip install 'tutelage\[lm-eval\]'", refusal(ConfigError, "hellaswag"))


def test_a_task_in_a_suite_is_a_measure_with_the_items_of_the_harness(tmp_path: Path) -> None:
    path = write_task(tmp_path, CHOICE, CAPITALS)
    options = {"kind": "lm_eval", "tasks": [path.name], "name": "choice"}
    (evaluation,) = read_suite({"prior": [options]}, tmp_path, "suite.yaml")
    evaluation.check()
    outcome = evaluation.run(LoadedModel(MODEL, TOKENIZER, "tiny"), TEMPLATE)
    (task,) = evaluate_lm_eval(MODEL, TEMPLATE, [str(path)]).tasks
    (measure,) = outcome.measures
    assert (measure.name, measure.unit, measure.role, measure.higher_is_better) == (
        *("choice", Unit.SHARE, Role.PRIOR, True),
    )
    assert outcome.scores == {"choice": tuple(item.score for item in task.items)}
    assert outcome.rows[0]["prompt"] == [{"role": "user", "content": CAPITALS[0]["question"]}]
    before = evaluation.identity
    (tmp_path / next(iter(CHOICE["dataset_kwargs"]["data_files"].values()))).write_text("{}\n")
    assert read_suite({"prior": [options]}, tmp_path, "suite.yaml")[0].identity != before


def test_a_task_file_that_is_missing_is_named_when_the_suite_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"suite.yaml: task\[0\]: tasks: .*none.yaml: no such file"):
        read_suite({"task": [{"kind": "lm_eval", "tasks": ["none.yaml"]}]}, tmp_path, "suite.yaml")


def test_tasks_and_their_data_are_looked_for_before_a_model_is_loaded(tmp_path: Path) -> None:
    """`check` needs no model."""
    path = write_task(tmp_path, CHOICE, None)
    for task, error, message in (
        ("helaswag", ConfigError, "did you mean 'hellaswag'"),
        (path.name, DataError, "there is no data file"),
    ):
        (evaluation,) = read_suite({"prior": [{"kind": "lm_eval", "tasks": [task]}]}, tmp_path, "suite.yaml")
        with pytest.raises(error, match=message):
            evaluation.check()
