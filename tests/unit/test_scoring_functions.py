"""A user's own functions: found where they are named, and every way of not being one said in a sentence."""

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import ConfigError
from tutelage.scoring import (
    exact_match,
    function_files,
    json_equal,
    load_function,
    load_scorer,
    rouge_l,
    tool_call_match,
)

OWN = """
import helper_beside
from dataclasses import dataclass

@dataclass
class Half:
    value: float = 0.5

LIMIT = 3

def half(answer, target):
    return Half().value

def shout(answer, target):
    return helper_beside.DOUBLE * len(answer) / 100
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the test, with a file, a helper beside it and a package."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "scores.py").write_text(OWN)
    (tmp_path / "own" / "helper_beside.py").write_text("DOUBLE = 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.mark.parametrize("place", ["own/scores.py", "./own/scores.py", "{folder}/own/scores.py"])
def test_a_file_and_what_is_beside_it(folder: Path, place: str):
    path = list(sys.path)
    assert load_function(f"{place.format(folder=folder)}:shout", "o")("a" * 10, "") == 0.2
    assert load_function(f"{place.format(folder=folder)}:half", "o")("", "") == 0.5
    assert sys.path == path


def test_the_files_a_function_depends_on(folder: Path):
    """Its own, those beside it that it imports, and what they import; nothing that is installed, nothing else."""
    own = folder / "own"
    (own / "helper_beside.py").write_text("import json\nfrom part.inner import one\nDOUBLE = 2\n")
    (own / "part").mkdir()
    (own / "part" / "__init__.py").write_text("")
    (own / "part" / "inner.py").write_text("from . import other\nfrom .other import x\nimport scores\none = 1\n")
    (own / "part" / "other.py").write_text("x = 1\n")
    (own / "unrelated.py").write_text("")
    names = ["scores.py", "helper_beside.py", "part/inner.py", "part/__init__.py", "part/other.py"]
    for reference, start in (("own/scores.py:half", None), ("scores.py:half", own), ("scores:half", own)):
        found = [path.resolve().relative_to(own).as_posix() for path in function_files(reference, start)]
        assert found[0] == "scores.py"
        assert sorted(found) == sorted(names)
    assert function_files("rouge_l") == function_files("nowhere.py:f") == function_files("no.such.module:f") == []
    assert [path.name for path in function_files("yaml:safe_load")] == ["__init__.py"]
    package = folder / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "rewards.py").write_text("from pkg.helpers import VALUE\ndef score(): ...\n")
    (package / "helpers.py").write_text("VALUE = 1\n")
    for start in (folder, None):
        files = function_files("pkg.rewards:score", start)
        assert sorted(path.name for path in files) == ["__init__.py", "helpers.py", "rewards.py"]
    (package / "__init__.py").write_text("from . import limits\n")
    (package / "limits.py").write_text("")
    assert "limits.py" in [path.name for path in function_files("pkg.rewards:score", folder)]
    (folder / "helper_beside.py").write_text("")  # of the same name elsewhere: never imported
    files = function_files("own/scores.py:half", folder)
    assert folder / "helper_beside.py" not in [path.resolve() for path in files]
    (folder / "bad_package").mkdir()
    (folder / "bad_package" / "__init__.py").write_text("raise RuntimeError('no')\n")
    sys.path.insert(0, str(folder))
    assert function_files("bad_package.part:score", own) == []
    (own / "broken.py").write_text("def")
    assert function_files("own/broken.py:f") == [Path("own/broken.py")]


def test_a_file_is_read_anew_each_time(folder: Path):
    (folder / "mine.py").write_text("def f():\n    return 1\n")
    first = load_function("mine.py:f", "o")
    (folder / "mine.py").write_text("def f():\n    return 222\n")
    assert (first(), load_function("mine.py:f", "o")()) == (1, 222)
    assert "mine" not in sys.modules


def test_a_module_of_the_current_folder_and_an_installed_one(folder: Path):
    (folder / "package_of_test").mkdir()
    (folder / "package_of_test" / "inner.py").write_text("def third(answer, target):\n    return 1 / 3\n")
    path = list(sys.path)
    assert load_function("package_of_test.inner:third", "o")("", "") == 1 / 3
    assert load_function("math:sqrt", "o")(9.0) == 3.0
    assert sys.path == path


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("half", "o: 'half' names no function; write 'path/to/file.py:function' or 'package.module:function'"),
        ("own/scores.py:", "o: 'own/scores.py:' names no function; write 'path/to/file.py:function' or "),
        (":half", "o: ':half' names no function; write "),
        ("own/score.py:half", "o: own/score.py does not exist; paths count from the current folder, "),
        ("own/:half", "o: own is no file; paths count from the current folder, "),
        ("own/notes.txt:half", "o: own/notes.txt is no Python file; name one that ends in .py"),
        ("own/scores.py:hafl", "o: own/scores.py has no 'hafl'; did you mean 'half'?; name a function that it defines"),
        ("math:squirt", "o: math has no 'squirt'; did you mean 'sqrt'?; name a function that it defines"),
        ("own/scores.py:LIMIT", "o: 'LIMIT' in own/scores.py is no function but of type int; name a function"),
        ("own/raises.py:f", "o: own/raises.py cannot be imported (ValueError: two lines of text); mend it, or name"),
        ("own/exits.py:f", "o: own/exits.py cannot be imported (SystemExit: 3); mend it, or name another"),
        ("own/silent.py:f", "o: own/silent.py cannot be imported (RuntimeError); mend it, or name another"),
        ("own/torn.py:f", "o: own/torn.py cannot be imported (SyntaxError: '(' was never closed (torn.py, line 1)); "),
        ("own/needs.py:f", "o: own/needs.py cannot be imported (ModuleNotFoundError: No module named 'nobody_has_it')"),
        (
            "nobody_has_it.x:f",
            "o: the module 'nobody_has_it.x' cannot be imported (ModuleNotFoundError: No module named",
        ),
    ],
)
def test_what_is_no_function(folder: Path, reference: str, sentence: str):
    for name, code in {
        "raises.py": "raise ValueError('two lines\\nof text')",
        "exits.py": "raise SystemExit(3)",
        "silent.py": "raise RuntimeError",
        "torn.py": "f(",
        "needs.py": "import nobody_has_it",
        "notes.txt": "half",
    }.items():
        (folder / "own" / name).write_text(code)
    path = list(sys.path)
    with pytest.raises(ConfigError) as caught:
        load_function(reference, "o")
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
    assert sys.path == path
    assert [name for name in sys.modules if name.startswith(("_tutelage_raises", "_tutelage_torn"))] == []


def test_built_in_scorers():
    names = ("exact_match", "json_equal", "rouge_l", "tool_call_match")
    assert [load_scorer(name) for name in names] == [exact_match, json_equal, rouge_l, tool_call_match]
    score = load_scorer("regex", pattern=r"\d+")
    assert [score(answer, "12") for answer in ("it is 12", "it is 13")] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "pattern", "sentence"),
    [
        (
            "rouge",
            None,
            "scorer: 'rouge' is no scorer; did you mean 'rouge_l'?; choose one of exact_match, json_equal, ",
        ),
        ("regex", None, "scorer: regex needs a pattern; give one, such as"),
        ("rouge_l", "a", "scorer: rouge_l takes no pattern; leave it out, or choose regex"),
        ("regex", "(", "regex: '(' is not a regular expression"),
        ("math:squirt", None, "scorer: math has no 'squirt'"),
    ],
)
def test_scorers_that_are_none(name: str, pattern: str | None, sentence: str):
    with pytest.raises(ConfigError) as caught:
        load_scorer(name, pattern=pattern)
    assert str(caught.value).startswith(sentence)


class Number:
    """Like an array of one element."""

    def __float__(self) -> float:
        return 0.25


class Several:
    """Like an array of several."""

    def __float__(self) -> float:
        raise TypeError("only arrays of one element can be converted")

    def __repr__(self) -> str:
        return "several"


def own_scorer(folder: Path, monkeypatch: pytest.MonkeyPatch, value: Any) -> Any:
    (folder / "own" / "mine.py").write_text("def score(answer, target):\n    return VALUE\n")
    monkeypatch.setattr("builtins.VALUE", value, raising=False)
    return load_scorer("own/mine.py:score")


@pytest.mark.parametrize(
    ("value", "score"), [(0, 0.0), (1, 1.0), (0.3, 0.3), (True, 1.0), (Fraction(1, 4), 0.25), (Number(), 0.25)]
)
def test_an_own_scorer(folder: Path, monkeypatch: pytest.MonkeyPatch, value: Any, score: float):
    found = own_scorer(folder, monkeypatch, value)("a", "b")
    assert (found, type(found)) == (score, float)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1.5, "1.5"),
        (-0.001, "-0.001"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (None, "None"),
        ("1", "'1'"),
        (1j, "1j"),
        ([1.0], "[1.0]"),
        (Several(), "several"),
        ("x" * 200, "'" + "x" * 78 + "…"),
    ],
)
def test_what_an_own_scorer_must_not_return(folder: Path, monkeypatch: pytest.MonkeyPatch, value: Any, written: str):
    with pytest.raises(ConfigError) as caught:
        own_scorer(folder, monkeypatch, value)("the answer", "b")
    assert str(caught.value) == (
        f"scorer: own/mine.py:score for the answer 'the answer' returned {written}; return a number from 0 to 1"
    )


def test_an_own_scorer_that_raises(folder: Path):
    (folder / "own" / "mine.py").write_text("def score(answer):\n    return 1\n\ndef key(a, b):\n    return {}[b]\n")
    with pytest.raises(ConfigError, match=r"own/mine.py:key for the answer 'a' raised KeyError: 'b'; return a number"):
        load_scorer("own/mine.py:key")("a", "b")
    with pytest.raises(ConfigError, match=r"TypeError: score\(\) takes 1 positional argument but 2 were given; return"):
        load_scorer("own/mine.py:score")("a", "b")
