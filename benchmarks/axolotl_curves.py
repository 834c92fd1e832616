"""What DFT's curves look like beside those of cross-entropy: the runs behind the figure of docs/axolotl.md.

    python benchmarks/axolotl_curves.py

Trains `examples/axolotl/dft.yml` in the environment of `make test-axolotl`, with and without `dft` at two learning
rates, evaluating on 32 facts of the same form that are not trained. Prints a table and draws the figure.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table

from tutelage.experiments.calling_codes import unseen_facts
from tutelage.experiments.figure_style import OBJECTIVE_COLOURS, png
from tutelage.models import resolve_model

ROOT = Path(__file__).resolve().parents[1]
LEARNING_RATES = (1e-4, 1e-3)
NAMES = {"sft": "cross-entropy", "dft": "DFT"}
PANELS = {
    "loss": ("Loss, each its own", "nats per token"),
    "nll": ("NLL of the trained rows", "nats per token"),
    "mean_token_probability": ("Mean token probability of the trained rows", "probability"),
    "eval_nll": ("NLL of facts that are not trained", "nats per token"),
}


def train(objective: str, learning_rate: float, axolotl: Path, folder: Path) -> list[dict[str, Any]]:
    """One run in a process of its own; what it logged, one entry a step."""
    config = yaml.safe_load((ROOT / "examples/axolotl/dft.yml").read_text(encoding="utf-8"))
    output = folder / f"{objective}-{learning_rate}"
    unseen = folder / "unseen.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": fact.question}, {"role": "assistant", "content": fact.answer}]}
        for fact in unseen_facts()
    ]
    unseen.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config |= {
        "base_model": resolve_model("smollm2"),
        "learning_rate": learning_rate,
        "output_dir": str(output),
        "dataset_prepared_path": str(folder / "prepared"),
        "test_datasets": [{**config["datasets"][0], "path": str(unseen), "split": "train"}],
        "eval_steps": 4,
        "eval_batch_size": 32,
        "save_steps": 24,
        "seed": 7,
    }
    if objective == "sft":
        del config["plugins"], config["dft"]
    path = folder / f"{output.name}.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    environment = {"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(ROOT / "src")
    command = [str(axolotl), "train", str(path), "--launcher", "python"]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{output.name} failed:\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}")
    (state,) = output.glob("checkpoint-*/trainer_state.json")
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    steps = {entry["step"]: dict(entry) for entry in history if "loss" in entry}
    for entry in history:
        if "eval_loss" in entry and entry["step"] + 1 in steps:  # before the step, as what the step logs is
            steps[entry["step"] + 1] |= {key: value for key, value in entry.items() if key.startswith("eval_")}
    for step in steps.values():
        # Without the plugin both are the cross-entropy.
        step.setdefault("nll", step["loss"])
        if "eval_loss" in step:
            step.setdefault("eval_nll", step["eval_loss"])
    return [steps[number] for number in sorted(steps)]


def draw(runs: dict[tuple[str, float], list[dict[str, Any]]]) -> Figure:
    """One panel a metric, one colour an objective, dashes for the larger learning rate."""
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    panels = figure.subplots(2, 2)
    for axes, (metric, (title, unit)) in zip(panels.flat, PANELS.items(), strict=True):
        for (objective, learning_rate), steps in runs.items():
            points = [(step["step"], step[metric]) for step in steps if metric in step]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    color=OBJECTIVE_COLOURS[objective],
                    linestyle="--" if learning_rate == max(LEARNING_RATES) else "-",
                    label=f"{NAMES[objective]}, learning rate {learning_rate:g}",
                )
        axes.set_title(title, loc="left")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def main() -> None:
    """All runs, a table, a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axolotl", type=Path, default=ROOT / ".venv-axolotl/bin/axolotl")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs/images/axolotl_curves.png")
    arguments = parser.parse_args()
    runs: dict[tuple[str, float], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for learning_rate in LEARNING_RATES:
            for objective in NAMES:
                runs[objective, learning_rate] = train(
                    objective, learning_rate, arguments.axolotl.absolute(), Path(folder)
                )
    names = {
        "loss": "loss",
        "nll": "nll",
        "mean_token_probability": "p",
        "eval_nll": "eval nll",
        "grad_norm": "grad norm",
    }
    table = Table("trained with", "lr", "step", *names.values())
    for (objective, learning_rate), steps in runs.items():
        for step in (step for step in steps if step["step"] in (1, 5, 13, 21, 24)):
            values = [f"{step[name]:.4f}" if name in step else "" for name in names]
            table.add_row(NAMES[objective], f"{learning_rate:g}", str(step["step"]), *values)
    Console().print(table)
    arguments.figure.write_bytes(png(draw(runs)))


if __name__ == "__main__":
    main()
