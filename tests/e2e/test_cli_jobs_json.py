"""`--json` everywhere: each command has it, and standard output is one JSON document then."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.command_line import Finished, Terminal, config_file
from tests.made_up import SEED, made_up_failure, made_up_model, made_up_results
from tests.small_experiments import written
from tests.small_runs import run_small
from tutelage import experiments


def leaves(command: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command below this one that does something itself."""
    below = getattr(command, "commands", None)
    if below is None:
        yield " ".join(names), command
        return
    for name, one in below.items():
        yield from leaves(one, (*names, name))


def commands() -> dict[str, Any]:
    from typer.main import get_command

    from tutelage.cli.app import app

    return dict(leaves(get_command(app)))


def test_every_command_is_known_here() -> None:
    """A new one is added here, and with it somebody thinks of its JSON."""
    assert sorted(commands()) == sorted(
        ["train", "compare", "demo", "eval", "exec", "chat", "serve", "worker", "cluster", "backup", "restore"]
        + [f"jobs {name}" for name in ("ls", "show", "logs", "cancel", "restart", "fetch", "explain", "submit")]
        + [f"files {name}" for name in ("upload", "ls", "get", "rm")]
        + [f"token {name}" for name in ("create", "ls", "revoke")]
        + [f"env {name}" for name in ("set", "ls", "rm", "import")]
    )


@pytest.mark.parametrize("name", sorted(commands()))
def test_each_command_has_json_and_says_what_its_options_are(name: str) -> None:
    command = commands()[name]
    assert "--json" in [option for parameter in command.params for option in parameter.opts]
    assert command.help
    assert [one.name for one in command.params if one.name != "help" and not one.help] == []


def answer(done: Finished) -> Any:
    assert done.code == 0, done
    return json.loads(done.out)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the tiny model, with its model."""
    return run_small(tmp_path_factory.mktemp("trained"), "run", max_steps=1).path


def test_train(terminal: Terminal, tmp_path: Path) -> None:
    config = config_file(tmp_path, max_steps=1)
    checked = terminal("train", config, "--dry-run", "--json")
    assert answer(checked)["config"]["max_steps"] == 1
    assert "First example" in checked.err
    done = terminal("train", config, "--json")
    found = answer(done)
    assert found["run"] == str(tmp_path / "run")
    assert Path(found["model"]).parent == tmp_path / "run"
    assert (Path(found["model"]) / "config.json").is_file() or (Path(found["model"]) / "adapter_config.json").is_file()
    assert "1 step" in done.err


def test_eval(terminal: Terminal, trained: Path, tmp_path: Path) -> None:
    """Both answers are wrong, so the interval has no width."""
    questions = [{"prompt": question, "target": "no model says this"} for question in ("q", "r")]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    task = {"kind": "generate", "file": "test.jsonl", "scorer": "exact_match", "max_new_tokens": 1}
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump({"task": task}))
    command = ("eval", trained, "--suite", suite, "--output", tmp_path / "out", "--json")
    found = answer(terminal(*command))
    measure = {"evaluation": "test", "measure": "test", "value": 0.0, "low": 0.0, "high": 0.0, "items": 2}
    assert found["measures"] == [measure]
    assert (found["results"], found["failed"], found["used_again"]) == (str(tmp_path / "out"), {}, [])
    assert answer(terminal(*command))["used_again"] == ["test"]


def test_compare(terminal: Terminal, tmp_path: Path) -> None:
    path, output = written(tmp_path, seeds=[4], runs={"sft": {"loss": "sft"}}), tmp_path / "out"
    plan = answer(terminal("compare", path, "--output", output, "--dry-run", "--json"))
    assert (plan["name"], plan["output"], plan["seeds"]) == ("small", str(output), [4])
    stage = {"stage": None, "rows": 8, "steps": 1, "passes": 1.0, "gold_reward": None}
    assert plan["to_train"] == [{"run": "sft", "seeds": [4], "stages": [stage], "warnings": []}]
    assert plan["evaluations"] == ["test"]
    found = answer(terminal("compare", path, "--output", output, "--json"))
    expected = {"report": str(output / "report.html"), "results": str(output / "results.json"), "failed": []}
    assert found == expected
    assert Path(found["report"]).is_file()
    assert json.loads(Path(found["results"]).read_text())["seeds"] == [4]


@pytest.mark.parametrize("failed", [False, True], ids=["well", "with a failure"])
def test_demo(terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: bool) -> None:
    """Only what it prints is its own: what it does is tested with the real model, and takes minutes."""
    runs = (made_up_model("sft", "sft", 3, 2, 0.1), *([made_up_failure()] if failed else []))
    monkeypatch.setattr(experiments, "run_demo", lambda *_, **__: made_up_results(*runs))
    done = terminal("demo", "--output", tmp_path, "--json")
    assert done.code == int(failed)
    errors = [{"run": "dft", "seed": SEED, "error": "RuntimeError: no <memory> left"}] if failed else []
    assert json.loads(done.out) == {
        "report": str(tmp_path / "report.html"),
        "results": str(tmp_path / "results.json"),
        "failed": errors,
    }
