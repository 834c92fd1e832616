"""`tutelage compare` as a user meets it."""

import json
from pathlib import Path

from tests.e2e.command_line import Terminal
from tests.small_experiments import written


def test_the_command_checks_compares_and_summarises(tmp_path: Path, terminal: Terminal) -> None:
    path, output = written(tmp_path), tmp_path / "out"
    checked = terminal("compare", str(path), "--output", str(output), "--dry-run")
    assert checked.code == 0
    assert [line.split() for line in checked.out.splitlines()] == [
        f"small: sft, dft with the seeds 4, 5, in {output}".split(),
        ["to", "train", "seeds", "rows", "steps", "passes", "over", "them"],
        ["sft", "4,", "5", "8", "1", "1"],
        ["dft", "4,", "5", "8", "1", "1"],
        ["evaluations:", "test"],
    ]
    assert not output.exists()

    finished = terminal("compare", str(path), "--output", str(output))
    assert finished.code == 0, finished.err
    lines = finished.out.strip().splitlines()
    assert [line.split()[0] for line in lines[-4:-1]] == ["base", "sft", "dft"]
    assert lines[-1] == f"report: {output / 'report.html'}"
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert results["seeds"] == [4, 5]
    assert len(list((output / "runs").iterdir())) == 4

    nothing_left = terminal("compare", str(path), "--output", str(output), "--dry-run")
    assert nothing_left.out.splitlines()[1:] == ["every run is trained", "evaluations: test"]

    again = terminal("compare", str(path), "--output", str(output))
    assert again.code == 0
    assert again.err.count("trained before, used again") == 4
