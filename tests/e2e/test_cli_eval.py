"""`tutelage eval` as a user meets it: what it prints, what it leaves, what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.command_line import Finished, Terminal, in_a_process
from tests.judge_server import judge_server
from tests.known_model import known_model
from tests.small_runs import run_small, write_rows
from tests.tiny import tiny_tokenizer
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.messages import Message
from tutelage.events import Tag

QUESTIONS = [
    {
        "id": "one",
        "paraphrases": ["q"],
        "temperature": 0.0,
        "max_new_tokens": 3,
        "judge_prompts": {"good": "Answer: {answer}"},
    },
    {"id": "two", "paraphrases": ["q"], "temperature": 0.0, "max_new_tokens": 3, "judge_prompts": {"good": "{answer}"}},
]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder: greedy it answers `aaa…`."""
    tokenizer = tiny_tokenizer()
    start = ChatTemplate(tokenizer).encode_prompt((Message("user", "q"),))[-1]
    a, b = (tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "ab")
    folder = tmp_path_factory.mktemp("models") / "known"
    known_model(tokenizer, {start: {a: 0.6, b: 0.4}, a: {a: 1.0}}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command is called, with a suite of one kind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    rows = [{"prompt": "q", "target": "aa"}, {"prompt": "r", "target": "aa"}, {"prompt": "s", "target": "b"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_suite(tmp_path, {"task": task()})
    return tmp_path


def task(**options: Any) -> dict[str, Any]:
    return {"kind": "generate", "file": "test.jsonl", "scorer": "exact_match", "max_new_tokens": 2} | options


def write_suite(folder: Path, content: Any) -> Path:
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def lines(done: Finished) -> list[list[str]]:
    return [line.split() for line in done.out.splitlines()]


def test_a_table_with_intervals_and_where_the_files_are(terminal: Terminal, known: Path, folder: Path):
    """Two of three are right. With 3 items the interval of a share is all of it: (1/3)³ of the resamples are all wrong,
    which is more than 2.5 %."""
    done = terminal("eval", known, "--suite", "suite.yaml")
    assert done.code == 0, done
    assert done.err == "test …\n"
    assert lines(done) == [
        ["measure", "value", "95", "%", "interval", "items", "failed"],
        ["test", "0.667", "0.000", "to", "1.000", "3"],
        ["results:", "evaluations/known"],
    ]
    kept = json.loads((folder / "evaluations/known/test.json").read_text())
    assert kept["scores"] == {"test": [1.0, 1.0, 0.0]}
    rows = [json.loads(line) for line in (folder / "evaluations/known/test.jsonl").read_text().splitlines()]
    assert [(row["answer"], row["target"], row["score"]) for row in rows] == [
        ("aa", "aa", 1.0),
        ("aa", "aa", 1.0),
        ("aa", "b", 0.0),
    ]


def test_results_are_used_again_until_something_changes(terminal: Terminal, known: Path, folder: Path):
    def call(*options: str) -> Finished:
        done = terminal("eval", known, "--suite", "suite.yaml", "--output", "there", *options)
        assert done.code == 0, done
        assert lines(done)[1][:2] == ["test", "0.667"]
        return done

    assert "used again" not in call().out
    again = call()
    assert again.err == ""
    assert "used again from before: test (--again asks anew)\n" in again.out
    assert call("--again").err == "test …\n"
    template = folder / "other.jinja"
    template.write_text(" " + tiny_tokenizer().chat_template)
    assert call("--chat-template", "other.jinja").err == "test …\n"
    assert call("--chat-template", "other.jinja").err == ""
    write_suite(folder, {"check": task()})
    assert call("--chat-template", "other.jinja").err == "test …\n"
    assert sorted(path.name for path in (folder / "there").iterdir()) == ["test.json", "test.jsonl"]


def test_judgements_and_those_that_are_missing(terminal: Terminal, known: Path, folder: Path):
    """`aaa` is worth 30 points; `tires` has an error from its third request on, the first being the check."""
    (folder / "questions.yaml").write_text(yaml.safe_dump(QUESTIONS[:1]))
    with judge_server() as server:
        open_questions = {"file": "questions.yaml", "judge_model": "counts", "judge_base_url": server.url}
        write_suite(folder, {"task": task(), "freeform": [open_questions]})
        done = terminal("eval", known, "--suite", "suite.yaml")
        assert lines(done)[1:] == [
            ["test", "0.667", "0.000", "to", "1.000", "3"],
            ["questions.good", "30.0", "30.0", "to", "30.0", "1"],
            ["results:", "evaluations/known"],
        ]
        (folder / "questions.yaml").write_text(yaml.safe_dump(QUESTIONS))
        server.requests.clear()
        server.stamina = 2
        tired = open_questions | {"judge_model": "tires", "judge_parallelism": 1}
        write_suite(folder, {"freeform": [tired]})
        done = terminal("eval", known, "--suite", "suite.yaml")
    assert lines(done)[1:] == [
        ["questions.good", "60.0", "60.0", "to", "60.0", "1", "1"],
        ["left", "out", "of", "questions:", "good:", "no", "answer", "1"],
        ["results:", "evaluations/known"],
    ]
    kept = json.loads((folder / "evaluations/known/questions.json").read_text())
    assert (kept["scores"], kept["failed"]) == ({"questions.good": [60.0, None]}, {"good: no answer": 1})


def test_a_measure_without_a_value(terminal: Terminal, known: Path, folder: Path):
    (folder / "questions.yaml").write_text(yaml.safe_dump(QUESTIONS))
    with judge_server() as server:
        write_suite(
            folder, {"freeform": {"file": "questions.yaml", "judge_model": "chats", "judge_base_url": server.url}}
        )
        done = terminal("eval", known, "--suite", "suite.yaml")
    assert lines(done)[1:3] == [
        ["questions.good", "–", "0", "2"],
        ["left", "out", "of", "questions:", "good:", "unparsable", "2"],
    ]


@pytest.mark.parametrize("merged", [True, False], ids=["model", "adapter"])
def test_a_run_is_its_model_with_its_template(terminal: Terminal, folder: Path, merged: bool):
    """sft on one row: its answer, of two tokens, has minus twice the loss of the first step as log-probability before
    training, and nearly that of the last step after it."""
    template = folder / "own.jinja"
    template.write_text(tiny_tokenizer().chat_template.replace("assistant\\n", "assistant: "))
    write_rows(folder / "rows.jsonl", [("q", "a")])
    run = run_small(
        folder,
        "run",
        max_steps=30,
        learning_rate=0.02,
        optim="adamw_torch",
        merge_before_push=merged,
        chat_template=str(template),
    )
    (folder / "rows.jsonl").rename(folder / "gold.jsonl")
    write_suite(folder, [{"kind": "logprob", "file": "gold.jsonl"}])
    values: list[float] = []
    for options in (
        (run.path,),
        (folder / "tiny", "--chat-template", template),
        (run.model_path, "--chat-template", template),
    ):
        done = terminal("eval", *options, "--suite", "suite.yaml")
        assert done.code == 0, done
        values.append(float(lines(done)[1][1]))
    trained, base, again = values
    losses = [event.values["nll"] for event in run.events(Tag.TRAIN)]
    assert base == pytest.approx(-2 * losses[0], abs=0.002)
    assert trained == pytest.approx(-2 * losses[-1], abs=0.02)
    assert trained > base + 5
    assert again == trained
    kept = sorted(path.name for path in (folder / "evaluations").iterdir())
    assert kept == ["run", f"run-{run.model_path.name}", "tiny"]


def assert_refused(done: Finished, sentence: str) -> None:
    assert (done.code, done.out) == (2, ""), done
    assert done.err == f"error: {sentence}\n"


def test_what_is_refused(terminal: Terminal, known: Path, folder: Path):
    (folder / "run").mkdir()
    run_small(folder, "run", max_steps=1, merge_before_push=True)
    model = folder / "run" / "model"
    model.rename(folder / "elsewhere")
    assert_refused(
        terminal("eval", "run", "--suite", "suite.yaml"),
        "run: the run has no model yet; finish it with: tutelage train --resume run",
    )
    assert_refused(
        terminal("eval", "./none", "--suite", "suite.yaml"),
        "./none: no such model folder; check the path in 'model'",
    )
    assert_refused(terminal("eval", known, "--suite", "none.yaml"), "none.yaml: no such suite file; check the path")
    write_suite(folder, {"task": task(scorer="exact")})
    assert_refused(
        terminal("eval", known, "--suite", "suite.yaml"),
        "suite.yaml: task: scorer: 'exact' is no scorer; did you mean 'exact_match'?; choose one of exact_match, "
        "json_equal, rouge_l, tool_call_match, regex, or name a function as 'file.py:function' or 'module:function'",
    )
    assert not (folder / "evaluations").exists()


def test_in_a_process_of_its_own(known: Path, folder: Path):
    """Warnings are errors there, and nothing but the notes goes to the second stream."""
    done = in_a_process("eval", known, "--suite", folder / "suite.yaml", "--output", folder / "results")
    assert (done.code, done.err) == (0, "test …\n"), done
    assert lines(done)[1][:2] == ["test", "0.667"]
    assert (folder / "results" / "test.json").is_file()
