"""`run_on: server`: the runs of a comparison as jobs, and the same numbers as when they are trained here."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from tests.served import Served
from tests.small_experiments import TASK, written
from tests.workers import working
from tutelage.experiments import load_experiment, run_experiment
from tutelage.experiments.results import ExperimentResults


def compared(experiment: Path, output: Path) -> tuple[ExperimentResults, str]:
    """The results, and what was said meanwhile."""
    console = Console(file=io.StringIO(), width=200)
    results = run_experiment(load_experiment(experiment), output, console)
    said = console.file
    assert isinstance(said, io.StringIO)
    return results, said.getvalue()


def numbers(results: ExperimentResults) -> dict[str, object]:
    """Everything a report shows of a run, and nothing of where and how long it was made."""
    return {
        f"{model.name} {seed.seed}": (seed.scores, seed.after, dict(seed.curves))
        for model in results.models
        for seed in model.seeds
    }


def test_a_server_gives_the_numbers_of_this_machine(
    own_server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stages, so that the second job begins with the model of the first; once more, and all is used again."""
    monkeypatch.setenv("TUTELAGE_URL", own_server.url)
    stages = {"first": {}, "second": {"training_file": "rows.jsonl", "learning_rate": 1e-3}}
    changes = {"runs": {"sft": {"loss": "sft"}}, "seeds": [4], "stages": stages, "evaluate": {"task": [TASK]}}
    here = written(tmp_path, **changes)
    local, _ = compared(here, tmp_path / "local")
    there = written(tmp_path, **changes, run_on="server")
    with working(own_server.url, tmp_path / "worker"):
        remote, said = compared(there, tmp_path / "remote")
        again, _ = compared(there, tmp_path / "remote")
    assert numbers(remote) == numbers(local) == numbers(again)
    assert all(seed.reused for model in again.runs for seed in model.seeds)
    jobs = own_server.api().ok("GET", "/api/jobs")["data"]
    assert [job["status"] for job in jobs] == ["completed", "completed"]
    assert jobs[0]["params"]["model"] == jobs[1]["id"]
    assert jobs[1]["id"] in said
    assert (tmp_path / "remote" / "report.html").is_file()
