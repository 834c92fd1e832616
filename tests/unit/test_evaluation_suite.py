"""Suites: what is read from YAML, what is refused and how, and asking a whole suite once."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from tests.judge_server import refused_url
from tests.known_model import known_model
from tests.tiny import tiny_tokenizer
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.messages import Message
from tutelage.errors import ConfigError, DataError, TutelageError
from tutelage.evaluation import (
    ChoiceEvaluation,
    Evaluation,
    FreeformEvaluation,
    GenerateEvaluation,
    LogProbEvaluation,
    OutcomeFolder,
    Role,
    Unit,
    evaluate_suite,
    load_suite,
    read_suite,
)
from tutelage.evaluation.freeform_questions import FreeformQuestion, JudgePrompt
from tutelage.evaluation.specs import KINDS, Spec
from tutelage.models import LoadedModel

TOKENIZER = tiny_tokenizer()
TEMPLATE = ChatTemplate(TOKENIZER)
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
START = TEMPLATE.encode_prompt((Message("user", "q"),))[-1]
A, B = (TOKENIZER(letter, add_special_tokens=False)["input_ids"][0] for letter in "ab")
KNOWN = LoadedModel(
    known_model(TOKENIZER, {START: {A: 0.6, B: 0.4}, A: {END: 0.8, A: 0.2}, B: {END: 0.5, B: 0.5}}), TOKENIZER, "known"
)
"""Greedy it answers `a`; p(a) = 0.6 · 0.8 = 0.48, p(b) = 0.4 · 0.5 = 0.2, each with its end of turn."""

TARGETS = [{"prompt": "q", "target": "a"}, {"prompt": "r", "target": "b"}]
CHOICES = [{"prompt": "q", "choices": ["a", "b"], "answer": "b"}]
CALL = {"prompt": "q", "target": '{"name": "f", "arguments": {}}'}
QUESTIONS = [{"id": "one", "paraphrases": ["q"], "judge_prompts": {"good": "{answer}"}}]
OWN_SCORER = "def half(answer, target):\n    return 0.5\n"
MODULE_SCORER = "def third(answer, target):\n    return 1 / 3\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of every kind."""
    data = tmp_path / "data"
    data.mkdir()
    write_rows(data / "test.jsonl", TARGETS)
    write_rows(data / "capitals.jsonl", CHOICES)
    write_rows(data / "calls.jsonl", [CALL])
    (tmp_path / "questions.yaml").write_text(yaml.safe_dump(QUESTIONS))
    (tmp_path / "own.py").write_text(OWN_SCORER)
    (tmp_path / "suite_module.py").write_text(MODULE_SCORER)
    return tmp_path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def generate(**options: Any) -> dict[str, Any]:
    return {"kind": "generate", "file": "data/test.jsonl", "scorer": "exact_match"} | options


CAPITALS = {"kind": "multiple_choice", "file": "data/capitals.jsonl"}
LOG_PROB = {"kind": "logprob", "file": "data/test.jsonl"}
OPEN = {"file": "questions.yaml", "judge_model": "m", "judge_base_url": "http://127.0.0.1:1/v1"}


def read(folder: Path, section: Mapping[str, Any]) -> list[Evaluation]:
    return read_suite(section, folder, "suite.yaml")


def test_every_kind_with_its_options(folder: Path):
    section = {
        "task": [generate(scorer="regex", pattern="[ab]", max_new_tokens=3, temperature=0.5, seed=4, batch_size=2)],
        "check": generate(name="unseen_ones", meaning="Never trained."),
        "prior": [
            CAPITALS | {"length": "mean", "title": "Capitals", "log_prob_title": "LP"},
            LOG_PROB | {"name": "lp"},
        ],
        "freeform": [OPEN | {"seed": 3, "judge_timeout": 5, "judge_parallelism": 2, "judge_max_tokens": None}],
    }
    task, check, prior, log_prob, freeform = read(folder, section)
    assert isinstance(task, GenerateEvaluation)
    assert (task.name, task.title, task.role, task.unit) == ("test", "test", Role.TASK, Unit.SHARE)
    assert (task.max_new_tokens, task.temperature, task.seed, task.batch_size) == (3, 0.5, 4, 2)
    assert (task.scorer("a", "a"), task.scorer("-a-", "a"), task.scorer("b", "a")) == (1.0, 1.0, 0.0)
    assert [question.place for question in task.questions] == [
        f"{folder / 'data/test.jsonl'}:{line}" for line in (1, 2)
    ]
    assert isinstance(check, GenerateEvaluation)
    assert (check.name, check.title, check.meaning, check.role) == (
        "unseen_ones",
        "unseen ones",
        "Never trained.",
        Role.CHECK,
    )
    assert (check.max_new_tokens, check.temperature, check.seed) == (64, 0.0, 0)
    assert isinstance(prior, ChoiceEvaluation)
    assert (prior.name, prior.title, prior.length, prior.log_prob_title) == ("capitals", "Capitals", "mean", "LP")
    assert prior.log_prob_meaning.startswith("Mean log-probability of the right answer")
    assert isinstance(log_prob, LogProbEvaluation)
    assert [question.target for question in log_prob.questions] == ["a", "b"]
    assert isinstance(freeform, FreeformEvaluation)
    assert (freeform.name, freeform.role, freeform.seed) == ("questions", Role.FREEFORM, 3)
    judge = freeform.judge
    assert (judge.model, judge.timeout, judge.parallelism, judge.temperature) == ("m", 5.0, 2, 0.0)
    assert judge.max_tokens is None


@pytest.mark.parametrize(
    ("scorer", "unit"),
    [("tool_call_match", "SHARE"), ("json_equal", "SHARE"), ("rouge_l", "SCORE"), ("own.py:half", "SCORE")],
)
def test_the_unit_says_whether_answers_can_be_half_right(folder: Path, scorer: str, unit: str):
    (evaluation,) = read(folder, {"task": generate(scorer=scorer, file="data/calls.jsonl")})
    assert isinstance(evaluation, GenerateEvaluation)
    assert evaluation.unit is Unit[unit]


def test_own_scorers_lie_beside_the_suite(folder: Path):
    by_file, by_module = read(
        folder, {"task": [generate(scorer="own.py:half"), generate(scorer="suite_module:third", name="other")]}
    )
    assert isinstance(by_file, GenerateEvaluation)
    assert isinstance(by_module, GenerateEvaluation)
    assert by_file.scorer("x", "y") == 0.5
    assert by_module.scorer("x", "y") == pytest.approx(1 / 3)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_identity_is_options_and_hashes_as_plain_json(folder: Path):
    (evaluation,) = read(folder, {"check": generate(scorer="own.py:half", title="T", batch_size=5)})
    assert json.loads(json.dumps(dict(evaluation.identity))) == {
        "kind": "generate",
        "name": "test",
        "title": "T",
        "meaning": "",
        "role": "check",
        "file": "data/test.jsonl",
        "scorer": "own.py:half",
        "pattern": None,
        "max_new_tokens": 64,
        "temperature": 0.0,
        "seed": 0,
        "sha256": {"data/test.jsonl": sha256(folder / "data/test.jsonl"), "own.py:half": sha256(folder / "own.py")},
    }


def test_the_identity_of_a_module_and_of_judged_questions(folder: Path):
    module, judged = read(folder, {"task": generate(scorer="suite_module:third"), "freeform": OPEN})
    assert module.identity["sha256"]["suite_module:third"] == sha256(folder / "suite_module.py")
    assert judged.identity["sha256"] == {"questions.yaml": sha256(folder / "questions.yaml")}
    assert {key: judged.identity[key] for key in judged.identity if key.startswith("judge")} == {
        "judge_model": "m",
        "judge_base_url": "http://127.0.0.1:1/v1",
        "judge_timeout": 30.0,
        "judge_temperature": 0.0,
        "judge_max_tokens": 256,
    }


def test_names_come_from_files(folder: Path):
    write_rows(folder / "data/my rows.v2.jsonl", TARGETS)
    (evaluation,) = read(folder, {"task": LOG_PROB | {"file": "data/my rows.v2.jsonl"}})
    assert (evaluation.name, evaluation.title) == ("my_rows.v2", "my rows.v2")


def test_a_file_holds_groups_or_a_list(folder: Path):
    suite = folder / "suite.yaml"
    suite.write_text("task: {kind: logprob, file: data/test.jsonl}\ncheck:\nprior: []\n")
    assert [(evaluation.name, evaluation.role) for evaluation in load_suite(suite)] == [("test", Role.TASK)]
    suite.write_text("- {kind: logprob, file: data/test.jsonl}\n- {kind: multiple_choice, file: data/capitals.jsonl}\n")
    assert [(evaluation.name, evaluation.role) for evaluation in load_suite(suite)] == [
        ("test", Role.TASK),
        ("capitals", Role.TASK),
    ]


REFUSED: dict[str, tuple[Mapping[str, Any], str]] = {
    "an unknown group": (
        {"tasks": []},
        "suite.yaml: 'tasks' is no group of evaluations; did you mean 'task'?; choose one of task, check, prior, "
        "freeform",
    ),
    "drift": (
        {"drift": [LOG_PROB]},
        "suite.yaml: 'drift' is no group of evaluations; choose one of task, check, prior, freeform",
    ),
    "nothing": (
        {"task": []},
        "suite.yaml: holds no evaluation; add one, such as task: [{kind: logprob, file: test.jsonl}]",
    ),
    "no mapping": (
        {"task": ["generate"]},
        "suite.yaml: task[0]: 'generate' is no evaluation; write options such as 'kind: generate'",
    ),
    "no kind": (
        {"task": {"file": "data/test.jsonl"}},
        "suite.yaml: task: 'kind' is missing; add one of {kinds}",
    ),
    "an unknown kind": (
        {"task": [generate(kind="generated")]},
        "suite.yaml: task[0]: kind 'generated' is not known; did you mean 'generate'?; choose one of {kinds}",
    ),
    "a kind that is a list": (
        {"task": [generate(kind=["generate"])]},
        "suite.yaml: task[0]: kind '['generate']' is not known; did you mean 'generate'?; choose one of {kinds}",
    ),
    "an unknown key": (
        {"task": [LOG_PROB, generate(name="x", max_new_token=3)]},
        "suite.yaml: task[1]: 'max_new_token' is not an option; did you mean 'max_new_tokens'?",
    ),
    "an option of another kind": (
        {"task": [LOG_PROB | {"zzz": 1}]},
        "suite.yaml: task[0]: 'zzz' is not an option; one of kind, name, title, meaning, batch_size, file",
    ),
    "two faults": (
        {"task": [{"kind": "generate", "file": "x", "seed": "one"}]},
        "suite.yaml: task[0]: scorer is missing; add it; seed: 'one' does not fit; input should be a valid integer, "
        "unable to parse string as an integer",
    ),
    "no judge": (
        {"freeform": [{"file": "questions.yaml"}]},
        "suite.yaml: freeform[0]: judge_model is missing; add it",
    ),
    "a judge that cannot be": (
        {"freeform": [OPEN | {"judge_base_url": "localhost"}]},
        "suite.yaml: freeform[0]: judge: judge_base_url is 'localhost'; begin it with http:// or https://",
    ),
    "a name that is none": (
        {"task": [LOG_PROB | {"name": "a b"}]},
        "suite.yaml: task[0]: name: 'a b' does not fit; use letters, digits, '_', '.' and '-', the first a letter, "
        "digit or '_'",
    ),
    "one name twice": (
        {"task": [LOG_PROB, generate()]},
        "suite.yaml: task[1]: the name 'test' is that of suite.yaml: task[0] too; give one of them another 'name'",
    ),
    "one name in two groups, in two cases": (
        {"task": LOG_PROB, "prior": [CAPITALS | {"name": "Test"}]},
        "suite.yaml: prior[0]: the name 'Test' is that of suite.yaml: task too; give one of them another 'name'",
    ),
    "a name for another's measure": (
        {"task": [LOG_PROB | {"name": "capitals_log_prob"}], "prior": [CAPITALS]},
        "suite.yaml: task[0]: the name 'capitals_log_prob' is for a measure of 'capitals' (suite.yaml: prior[0]); give "
        "one of them another 'name'",
    ),
    "an unknown scorer": (
        {"task": [generate(scorer="exactmatch")]},
        "suite.yaml: task[0]: scorer: 'exactmatch' is no scorer; did you mean 'exact_match'?; choose one of "
        "exact_match, json_equal, rouge_l, tool_call_match, regex, or name a function as 'file.py:function' or "
        "'module:function'",
    ),
    "regex without a pattern": (
        {"task": [generate(scorer="regex")]},
        "suite.yaml: task[0]: scorer: regex needs a pattern; give one, such as '[0-9]+'",
    ),
    "a pattern without regex": (
        {"task": [generate(pattern="a")]},
        "suite.yaml: task[0]: scorer: exact_match takes no pattern; leave it out, or choose regex",
    ),
    "no such scorer file": (
        {"task": [generate(scorer="mine.py:half")]},
        "suite.yaml: task[0]: scorer: {folder}/mine.py does not exist; paths count from {folder}",
    ),
    "no such function": (
        {"task": [generate(scorer="own.py:hlf")]},
        "suite.yaml: task[0]: scorer: own.py has no 'hlf'; did you mean 'half'?; name a function that it defines",
    ),
    "no such file": (
        {"task": [LOG_PROB | {"file": "data/tests.jsonl"}]},
        "{folder}/data/tests.jsonl: no such file; did you mean 'test.jsonl'?",
    ),
    "choices without choices": (
        {"task": [CAPITALS | {"file": "data/calls.jsonl"}]},
        "{folder}/data/calls.jsonl:1: no 'choices'; give a list of texts",
    ),
    "targets that the scorer cannot read": (
        {"task": [generate(scorer="tool_call_match")]},
        "{folder}/data/test.jsonl: 2 of 2 targets cannot be used:\n"
        "  {folder}/data/test.jsonl:1: tool_call_match: the target 'a' is not JSON (Expecting value: line 1 column 1 "
        "(char 0)); mend the target\n"
        "  {folder}/data/test.jsonl:2: tool_call_match: the target 'b' is not JSON (Expecting value: line 1 column 1 "
        "(char 0)); mend the target",
    ),
}


@pytest.mark.parametrize(("section", "sentence"), REFUSED.values(), ids=REFUSED)
def test_suites_that_are_refused(folder: Path, section: Mapping[str, Any], sentence: str):
    with pytest.raises(TutelageError) as refused:
        read(folder, section)
    expected = sentence.replace("{folder}", str(folder))
    assert str(refused.value) == expected.replace("{kinds}", ", ".join(KINDS))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- hello\n", "suite.yaml: [0]: 'hello' is no evaluation; write options such as 'kind: generate'"),
        ("hello\n", "suite.yaml: holds str, not evaluations; write groups such as 'task:' with a list each"),
        ("", "suite.yaml: holds NoneType, not evaluations; write groups such as 'task:' with a list each"),
        ("task: []\ntask: []\n", "suite.yaml:2: 'task' is written twice; mend the YAML there"),
        ("task: [\n", "suite.yaml:2: expected the node content, but found '<stream end>'; mend the YAML there"),
    ],
)
def test_files_that_hold_no_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, sentence: str):
    monkeypatch.chdir(tmp_path)
    Path("suite.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_suite(Path("suite.yaml"))
    assert str(refused.value) == sentence


def test_no_suite_file(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such suite file; check the path"):
        load_suite(tmp_path / "none.yaml")


class Asking:
    """Asks the known model, and notes what was said and how often it was loaded."""

    def __init__(self, path: Path) -> None:
        self.folder = OutcomeFolder(path, "hash of the model")
        self.said: list[str] = []
        self.loaded = 0

    def load(self) -> tuple[LoadedModel, ChatTemplate]:
        self.loaded += 1
        return KNOWN, TEMPLATE

    def __call__(self, evaluations: list[Evaluation], **options: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
        self.said.clear()
        done = evaluate_suite(self.load, evaluations, self.folder, self.said.append, **options)
        return {name: dict(outcome.scores) for name, outcome in done.outcomes.items()}, done.kept


SUITE = {"task": [generate(title="The task"), LOG_PROB | {"name": "lp"}], "prior": CAPITALS}


def test_a_whole_suite_by_hand(folder: Path):
    """Greedy answers are a: right, wrong. ln 0.48 = −0.733969, ln 0.2 = −1.609438; of a and b, a is chosen."""
    ask = Asking(folder / "results")
    scores, kept = ask(read(folder, SUITE))
    assert list(scores) == ["test", "lp", "capitals"]
    assert scores["test"] == {"test": (1.0, 0.0)}
    assert scores["lp"]["lp"] == pytest.approx((-0.733969, -1.609438), abs=1e-4)
    assert scores["capitals"]["capitals"] == (0.0,)
    assert scores["capitals"]["capitals_log_prob"] == pytest.approx((-1.609438,), abs=1e-4)
    assert (kept, ask.loaded, ask.said) == ((), 1, ["The task …", "lp …", "capitals …"])
    names = sorted(path.name for path in ask.folder.path.iterdir())
    assert names == ["capitals.json", "capitals.jsonl", "lp.json", "lp.jsonl", "test.json", "test.jsonl"]
    written = json.loads((ask.folder.path / "test.json").read_text())
    assert written.pop("seconds") > 0
    assert written.pop("identity")["sha256"] == {"data/test.jsonl": sha256(folder / "data/test.jsonl")}
    assert written == {
        "evaluation": "test",
        "model": "hash of the model",
        "complete": True,
        "means": {"test": 0.5},
        "failed": {},
        "measures": [
            {
                "name": "test",
                "title": "The task",
                "role": "task",
                "unit": "share of items",
                "meaning": "",
                "higher_is_better": True,
            }
        ],
        "scores": {"test": [1.0, 0.0]},
    }
    rows = [json.loads(line) for line in (ask.folder.path / "test.jsonl").read_text().splitlines()]
    assert rows[1] == {
        "prompt": [{"role": "user", "content": "r"}],
        "answer": "a",
        "target": "b",
        "score": 0.0,
        "truncated": False,
        "place": f"{folder / 'data/test.jsonl'}:2",
    }


def test_what_is_known_is_not_asked_again(folder: Path):
    ask = Asking(folder / "results")
    first, _ = ask(read(folder, SUITE))
    assert ask(read(folder, SUITE)) == (first, ("test", "lp", "capitals"))
    assert (ask.loaded, ask.said) == (1, [])

    other_batches = {"task": [generate(title="The task", batch_size=1), SUITE["task"][1]], "prior": CAPITALS}
    assert ask(read(folder, other_batches)) == (first, ("test", "lp", "capitals"))

    write_rows(folder / "data/capitals.jsonl", [CHOICES[0] | {"answer": "a"}])
    changed, kept = ask(read(folder, SUITE))
    assert (kept, ask.loaded, ask.said) == (("test", "lp"), 2, ["capitals …"])
    assert changed["capitals"]["capitals"] == (1.0,)
    assert list(changed) == ["test", "lp", "capitals"]

    ask.folder = replace(ask.folder, model="another")
    assert ask(read(folder, SUITE))[1] == ()
    assert ask(read(folder, SUITE), again=True) == (changed, ())
    assert ask.loaded == 4


def test_a_changed_scorer_is_asked_again(folder: Path):
    suite = {"task": generate(scorer="own.py:half")}
    ask = Asking(folder / "results")
    assert ask(read(folder, suite)) == ({"test": {"test": (0.5, 0.5)}}, ())
    assert ask(read(folder, suite))[1] == ("test",)
    (folder / "own.py").write_text(OWN_SCORER.replace("0.5", "0.25"))
    assert ask(read(folder, suite)) == ({"test": {"test": (0.25, 0.25)}}, ())


def test_judges_are_looked_for_before_the_model_is_loaded(folder: Path):
    ask = Asking(folder / "results")
    section = {"task": generate(), "freeform": OPEN | {"judge_base_url": refused_url()}}
    with pytest.raises(ConfigError, match="nothing answers at"):
        ask(read(folder, section))
    assert ask.loaded == 0


def test_scorers_are_tried_before_the_model_is_loaded(folder: Path):
    ask = Asking(folder / "results")
    for body, message in (
        ("return answr == target", "raised NameError"),
        ("return 100", "returned 100; return a number from 0 to 1"),
    ):
        (folder / "own.py").write_text(f"def half(answer, target):\n    {body}\n")
        with pytest.raises(ConfigError, match=message):
            ask(read(folder, {"task": generate(scorer="own.py:half")}))
    assert ask.loaded == 0


def test_what_was_done_before_a_failure_is_kept(folder: Path):
    write_rows(folder / "data/long.jsonl", [{"prompt": "b" * 300, "target": "a"}])
    ask = Asking(folder / "results")
    with pytest.raises(DataError, match=r"long\.jsonl:1: \d+ tokens, but the model has 256 positions"):
        ask(read(folder, {"task": [generate(), LOG_PROB | {"file": "data/long.jsonl"}]}))
    assert ask(read(folder, {"task": generate()}))[1] == ("test",)


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMON = set(Spec.model_fields)
DESCRIBED: dict[str, tuple[type[BaseModel], set[str]]] = {
    "## Options of every kind\n": (Spec, set()),
    **{f"## `{kind}`\n": (spec, COMMON) for kind, spec in KINDS.items()},
    "| Key of a question |": (FreeformQuestion, set()),
    "| Key of a judge prompt |": (JudgePrompt, set()),
}


@pytest.mark.parametrize(("heading", "model", "elsewhere"), [(key, *value) for key, value in DESCRIBED.items()])
def test_the_page_has_every_option_with_its_default(heading: str, model: type[BaseModel], elsewhere: set[str]):
    table = PAGE.partition(heading)[2].partition("\n\n| Scorer")[0]
    table = table.partition("\n## ")[0] if heading.startswith("#") else table.partition("\n\n")[0]
    table = table.partition("\n```")[0]
    rows = {
        match[1]: "required" if match[2] == "required" else None if match[2] == "unset" else yaml.safe_load(match[3])
        for match in re.finditer(r"^\| `([^`]+)` \| (`?([^|`]+)`?) \| .+ \|$", table, flags=re.MULTILINE)
    }
    fields = {name: field for name, field in model.model_fields.items() if name not in elsewhere}
    assert rows == {name: "required" if field.is_required() else field.default for name, field in fields.items()}


def test_the_examples_on_the_page_are_valid(folder: Path):
    suite, questions = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL))
    (folder / "questions.yaml").write_text(yaml.safe_dump(questions))
    write_rows(folder / "data/test.jsonl", [CALL])
    for name in ("unseen", "everyday"):
        write_rows(folder / f"data/{name}.jsonl", TARGETS)
    names = [evaluation.name for evaluation in read(folder, suite)]
    assert names == ["test", "unseen_countries", "capitals", "everyday", "questions"]
