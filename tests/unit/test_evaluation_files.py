"""Scorers, question files and result files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tutelage.data.conversations import Message
from tutelage.errors import ConfigError, DataError, OutputError
from tutelage.evaluation import (
    ChoiceQuestion,
    Question,
    exact_match,
    read_choice_questions,
    read_questions,
    regex,
    write_items,
)

USER = {"role": "user", "content": "q"}
ASKED = (Message("user", "q"),)


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_exact_match():
    assert exact_match(" +66\n", "+66") == 1.0
    assert exact_match("+66.", "+66") == 0.0
    assert exact_match("paris", "Paris") == 0.0


@pytest.mark.parametrize(
    ("pattern", "answer", "score"),
    [
        (r"\+\d+", "The code of Thailand is +66.", 1.0),
        (r"\+\d+", "It is +6 or +66.", 0.0),  # the first match counts
        (r"\+\d+", "It is 66.", 0.0),
        (r"\+\d+", "+668", 0.0),
        (r"code is (\S+?)\.?$", "The code is +66.", 1.0),  # the first group counts
        (r"(\+1)?\+66", "+66", 0.0),  # a group that took no part is no match
    ],
)
def test_regex_compares_the_first_match(pattern: str, answer: str, score: float):
    assert regex(pattern)(answer, "+66") == score


def test_a_pattern_that_is_none():
    with pytest.raises(ConfigError, match=r"'\(': |regex: '\('"):
        regex("(")


def test_targets_are_given_or_the_last_answer(tmp_path: Path):
    path = write_rows(
        tmp_path / "q.jsonl",
        {"prompt": "q", "target": "t"},
        {"messages": [USER, {"role": "assistant", "content": "gold"}]},
        {"messages": [USER, {"role": "assistant", "content": "gold"}], "target": "t"},
    )
    expected = [Question(ASKED, target, f"{path}:{line}") for line, target in enumerate(("t", "gold", "t"), start=1)]
    assert read_questions(path) == expected


@pytest.mark.parametrize("row", [{"prompt": "q"}, {"messages": [USER]}, {"prompt": "q", "target": 4}])
def test_a_question_without_a_target(tmp_path: Path, row: dict[str, Any]):
    message = "'target' is '4', of type int; give a text" if "target" in row else "no target; give a text 'target'"
    with pytest.raises(DataError, match=rf"q\.jsonl:1: {message}"):
        read_questions(write_rows(tmp_path / "q.jsonl", row))


def test_the_right_choice_is_a_text_or_an_index(tmp_path: Path):
    row = {"prompt": "q", "choices": ["a", "b", "c"]}
    path = write_rows(tmp_path / "c.jsonl", row | {"answer": "b"}, row | {"answer": 2})
    assert read_choice_questions(path) == [
        ChoiceQuestion(ASKED, ("a", "b", "c"), right, f"{path}:{right}") for right in (1, 2)
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"choices": ["a", "b"], "answer": "c"}, "'answer' is 'c'"),
        ({"choices": ["a", "b"], "answer": 2}, "'answer' is '2'; .* index from 0 to 1"),
        ({"choices": ["a", "b"], "answer": True}, "'answer' is 'True'"),
        ({"choices": ["a", "b"]}, "no 'answer'; give one of the choices"),
        ({"choices": ["a", "a"], "answer": 0}, "1 different choices of 2"),
        ({"choices": ["a"], "answer": 0}, "give two or more"),
        ({"choices": "ab", "answer": 0}, "give a list of texts"),
        ({"choices": ["a", " "], "answer": 0}, "give a list of texts"),
    ],
)
def test_choices_that_cannot_be_asked(tmp_path: Path, fields: dict[str, Any], message: str):
    with pytest.raises(DataError, match=rf"c\.jsonl:1: .*{message}"):
        read_choice_questions(write_rows(tmp_path / "c.jsonl", {"prompt": "q"} | fields))


def test_all_bad_questions_are_reported_together(tmp_path: Path):
    path = write_rows(tmp_path / "q.jsonl", {"prompt": "q", "target": "t"}, {"prompt": "q"}, {"target": "t"})
    with pytest.raises(DataError, match=r"2 of 3 questions cannot be used:\n.*q\.jsonl:2.*\n.*q\.jsonl:3"):
        read_questions(path)
    with pytest.raises(DataError, match="has no questions"):
        read_questions(write_rows(path))


@dataclass(frozen=True)
class Item:
    number: int

    def row(self) -> dict[str, Any]:
        return {"number": self.number}


def test_result_files_replace_what_was_there(tmp_path: Path):
    path = tmp_path / "results" / "sft.jsonl"
    write_items(path, [Item(1), Item(2), Item(3)])
    write_items(path, [Item(4), Item(5)])
    assert path.read_text() == '{"number": 4}\n{"number": 5}\n'
    assert [file.name for file in path.parent.iterdir()] == ["sft.jsonl"]


def test_a_result_file_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "results").touch()
    with pytest.raises(OutputError, match="results: cannot be made"):
        write_items(tmp_path / "results" / "sft.jsonl", [Item(1)])
