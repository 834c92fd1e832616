"""What `compare` prints before, and `demo` and `compare` at the end: a line a run or model, and where things go."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tutelage.cli.output import print_json

if TYPE_CHECKING:
    from tutelage.experiments import Experiment, ExperimentResults, PlannedRun

WIDEST_VALUE = len("108 of 120")


def quiet_libraries() -> None:
    """Progress bars and warnings of `transformers` would tear our own lines."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def print_plan(experiment: "Experiment", planned: "Sequence[PlannedRun]", output: Path, as_json: bool) -> None:
    """What is still to be trained and how much that is, what is asked, and where it goes."""
    if as_json:
        print_json(_plan(experiment, planned, output))
        return
    from rich.table import Table

    from tutelage.experiments import unequal_passes

    seeds = f"seed{'s' * (len(experiment.seeds) > 1)} {', '.join(map(str, experiment.seeds))}"
    print(f"{experiment.name}: {', '.join(experiment.runs)} with the {seeds}, in {output.absolute()}")
    table = Table(box=None, pad_edge=False)
    for title in ("to train", "stage")[: 2 if experiment.stages else 1]:
        table.add_column(title, no_wrap=True)
    rewarded = any(reward is not None for run in planned for reward in run.gold_rewards)
    for title in ("seeds", "rows", "steps", "passes over them", *(["gold reward"] if rewarded else [])):
        table.add_column(title, justify="right")
    for run in planned:
        for stage, size, reward in zip(experiment.stages or ("",), run.sizes, run.gold_rewards, strict=True):
            rows = f"{size.rows} in {size.units} packs" if size.is_packed else f"{size.rows}"
            numbers = [", ".join(map(str, run.seeds)), rows, f"{size.steps}", f"{size.passes:.3g}"]
            if rewarded:
                numbers.append("–" if reward is None else f"{reward:.3g}")
            table.add_row(run.name, *([stage] if experiment.stages else []), *numbers)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if planned:
        console.print(table)
    else:
        print("every run is trained")
    for run in planned:
        for warning in run.warnings:
            print(f"warning: {run.name}: {warning}")
    if (remark := unequal_passes(planned, experiment.stages)) is not None:
        print(f"note: {remark}")
    print(f"evaluations: {', '.join(evaluation.title for evaluation in experiment.evaluations) or 'KL to base only'}")
    if experiment.evaluate_every is not None:
        print(f"all of them after every {experiment.evaluate_every} steps of every run too")


def _plan(experiment: "Experiment", planned: "Sequence[PlannedRun]", output: Path) -> dict[str, Any]:
    stages = experiment.stages or (None,)
    return {
        "name": experiment.name,
        "output": output.absolute(),
        "seeds": experiment.seeds,
        "to_train": [
            {
                "run": run.name,
                "seeds": run.seeds,
                "stages": [
                    {
                        "stage": stage,
                        "rows": size.rows,
                        "steps": size.steps,
                        "passes": size.passes,
                        "gold_reward": reward,
                    }
                    for stage, size, reward in zip(stages, run.sizes, run.gold_rewards, strict=True)
                ],
                "warnings": run.warnings,
            }
            for run in planned
        ],
        "evaluations": [evaluation.title for evaluation in experiment.evaluations],
        "evaluate_every": experiment.evaluate_every,
    }


def print_summary(results: "ExperimentResults", output: Path, as_json: bool) -> None:
    """A line a model with the measures that fit a terminal: not log-probabilities, and one KL."""
    from tutelage.experiments.report import REPORT_FILE

    if as_json:
        failed = [{"run": model.name, "seed": seed.seed, "error": seed.error} for model, seed in results.failed]
        print_json({"report": output / REPORT_FILE, "results": output / "results.json", "failed": failed})
        return
    from rich.table import Table

    from tutelage.evaluation import Unit
    from tutelage.experiments.sentences import value_text
    from tutelage.experiments.specification import KL_VS_BASE

    shown = [
        measure for measure in results.measures if measure == KL_VS_BASE or measure.unit not in (Unit.LOG_PROB, Unit.KL)
    ]
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for measure in shown:
        table.add_column(measure.title, justify="right", min_width=WIDEST_VALUE)
    for model in [results.base, *results.runs]:
        scores = [(model.scores.get(measure.name), measure) for measure in shown]
        table.add_row(model.name, *(value_text(score, measure) if score else "–" for score, measure in scores))
    for model, seed in results.failed:
        table.add_row(f"{model.name}, seed {seed.seed}" if len(model.seeds) > 1 else model.name, "failed")
    Console(soft_wrap=True).print(table)
    print(f"report: {output / REPORT_FILE}")
