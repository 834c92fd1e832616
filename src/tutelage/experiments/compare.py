"""`run_experiment`: base and runs, trained and evaluated one after another, then results, figures and report.

Not here: what is compared (`specification.py`), how a model is asked (`evaluate.py`).
"""

import logging
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from tutelage.config import TrainingConfig
from tutelage.data.conversations import data_hash
from tutelage.errors import Interrupted, TrainingError, TutelageError
from tutelage.events import Tag
from tutelage.experiments.evaluate import Evaluated, Evaluator
from tutelage.experiments.figures import PANELS, write_figures
from tutelage.experiments.report import write_report
from tutelage.experiments.results import Curve, ExperimentResults, ModelResult, Status
from tutelage.experiments.specification import BASE, Experiment
from tutelage.files import make_folder
from tutelage.training import Run, train
from tutelage.training.record import describe_run

logger = logging.getLogger(__name__)


def run_experiment(experiment: Experiment, output: Path, console: Console) -> ExperimentResults:
    """Train and evaluate everything, write results, figures and report to `output`, and return the results.

    Runs go to `output/runs/<name>`. A run that fails is reported, marked in the results and left out of every
    table; TrainingError if none is left. Raises Interrupted on ctrl-C: finished runs stay where they are.
    """
    make_folder(output, "--output")
    evaluator = Evaluator(experiment, console)
    finished: list[str] = []
    models: list[ModelResult] = []
    try:
        console.print("evaluating base", highlight=False)
        models.append(_model_result(BASE, None, evaluator.base()))
        for number, (name, config) in enumerate(experiment.configs.items(), start=1):
            placed = config.model_copy(update={"output_dir": output / "runs" / name})
            progress = f"({number}/{len(experiment.configs)})"
            models.append(_attempt(name, placed, evaluator, progress, console))
            if models[-1].status is Status.FINISHED:
                finished.append(name)
    except (KeyboardInterrupt, Interrupted) as stop:
        kept = ", ".join(str(output / "runs" / name) for name in finished) or "none"
        where = f"{stop}; " if isinstance(stop, Interrupted) else "stopped; "
        raise Interrupted(f"{where}finished runs: {kept}; no report was written") from stop
    if not finished:
        reasons = "; ".join(f"{model.name}: {model.error}" for model in models if model.error)
        raise TrainingError(f"{output}: no run finished, so there is nothing to compare; {reasons}")
    results = _results(experiment, models, output)
    console.print("writing results, figures and report", highlight=False)
    results.write(output)
    write_figures(results, output)
    write_report(results, output)
    return results


def _attempt(name: str, config: TrainingConfig, evaluator: Evaluator, progress: str, console: Console) -> ModelResult:
    """Train and evaluate one run; whatever goes wrong is the run's own failure, and the others go on."""
    try:
        console.print(f"training {name} {progress}", highlight=False, markup=False)
        started = time.perf_counter()
        run = train(config, console=console)
        training_seconds = time.perf_counter() - started
        console.print(f"evaluating {name} {progress}", highlight=False, markup=False)
        return _model_result(name, run, evaluator.run(run), training_seconds)
    except Interrupted:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, TutelageError) else f"{type(error).__name__}: {error}"
        logger.warning("run %s failed", name, exc_info=error)
        console.print(f"warning: {name} failed and is left out: {reason}", highlight=False, markup=False)
        return ModelResult(
            name,
            config.loss,
            status=Status.FAILED,
            error=reason,
            config=config.flat(),
            run_path=str(config.output_dir),
        )


def _model_result(name: str, run: Run | None, evaluated: Evaluated, training_seconds: float = 0.0) -> ModelResult:
    return ModelResult(
        name,
        run.config.loss if run else None,
        scores=evaluated.scores,
        answers=evaluated.answers,
        curves=_curves(run) if run else {},
        config=run.config.flat() if run else {},
        run_path=str(run.path) if run else None,
        training_seconds=training_seconds,
        evaluation_seconds=evaluated.seconds,
    )


def _curves(run: Run) -> dict[str, Curve]:
    """What the panels show, from the run's own log."""
    wanted = {panel.metric for panel in PANELS}
    curves: dict[str, dict[int, float]] = {}
    for event in run.events(Tag.TRAIN, Tag.MONITORING):
        for metric, value in event.values.items():
            if metric in wanted and isinstance(value, int | float):
                curves.setdefault(metric, {})[event.step] = float(value)
    return {metric: sorted(points.items()) for metric, points in curves.items()}


def _results(experiment: Experiment, models: list[ModelResult], output: Path) -> ExperimentResults:
    first = experiment.first_config
    record: dict[str, Any] = describe_run(first)
    files = {config.training_file for config in experiment.configs.values()} | set(experiment.data_files)
    return ExperimentResults(
        name=experiment.name,
        title=experiment.title,
        model=first.model,
        seed=first.seed,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        task=experiment.task,
        task_again=experiment.task_again,
        measures=experiment.measures,
        models=tuple(models),
        data={path.name: data_hash(path) for path in sorted(files)},
        environment={key: record[key] for key in ("versions", "hardware", "git_commit")},
        introduction=experiment.introduction,
        notes=experiment.notes,
        sources=experiment.sources,
    )
