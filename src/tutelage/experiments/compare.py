"""`run_experiment`: base and runs, trained and evaluated one after another, then results, figures and report.

What is there already is used again: finished runs, checkpoints of stopped ones, outcomes of evaluations. Not here: what
is compared (`specification.py`), how a model is asked (`evaluate.py`).
"""

import logging
import shutil
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from tutelage.config import TrainingConfig
from tutelage.data.conversations import data_hash
from tutelage.errors import Interrupted, ResumeError, TrainingError, TutelageError
from tutelage.events import Tag
from tutelage.experiments.evaluate import Evaluated, Evaluator
from tutelage.experiments.figures import ON_THE_WAY, is_shown, write_figures
from tutelage.experiments.identity import digest, run_identity
from tutelage.experiments.report import write_report
from tutelage.experiments.results import Curve, ExperimentResults, ModelResult, SeedResult, Status
from tutelage.experiments.specification import BASE, Experiment
from tutelage.files import make_folder
from tutelage.training import Run, train
from tutelage.training.checkpoints import latest_checkpoint
from tutelage.training.record import describe_run

logger = logging.getLogger(__name__)


def run_experiment(experiment: Experiment, output: Path, console: Console) -> ExperimentResults:
    """Train and evaluate everything, write results, figures and report to `output`, and return the results.

    A run with a seed goes to `output/runs/<name>-seed<seed>-<hash of what it is>`; one that is finished there is used
    again. A run that fails is reported, marked in the results and left out of every table; TrainingError if none is
    left. Raises Interrupted on ctrl-C: what is done stays, and the same command goes on from there.
    """
    for evaluation in experiment.evaluations:
        evaluation.check()
    make_folder(output, "--output")
    comparison = _Comparison(experiment, output, console)
    try:
        models = comparison.models()
    except (KeyboardInterrupt, Interrupted) as stop:
        where = f"{str(stop).partition(';')[0]}; " if isinstance(stop, Interrupted) else "stopped; "
        raise Interrupted(
            f"{where}what is done stays in {output}: the same command goes on from there; no report was written"
        ) from stop
    if not any(model.finished for model in models[1:]):
        reasons = "; ".join(
            f"{model.name} (seed {seed.seed}): {seed.error}" for model in models for seed in model.failed
        )
        raise TrainingError(f"{output}: no run finished, so there is nothing to compare; {reasons}")
    results = _results(experiment, comparison, models)
    console.print("writing results, figures and report", highlight=False)
    results.write(output)
    write_figures(results, output)
    write_report(results, output)
    return results


class _Comparison:
    """The work on one experiment in one folder."""

    def __init__(self, experiment: Experiment, output: Path, console: Console) -> None:
        self.experiment, self.output, self.console = experiment, output, console
        self.evaluator = Evaluator(experiment, output / "evaluations", lambda text: self._say(f"  {text}"))
        self.base: Evaluated | None = None
        self._number = 0

    def models(self) -> list[ModelResult]:
        """The base, then every run."""
        self._say("evaluating base")
        self.base = self.evaluator.base()
        seed = SeedResult(
            seed=self.experiment.seeds[0],
            scores=self.base.scores,
            failed=self.base.failed,
            evaluation_seconds=self.base.seconds,
        )
        base = ModelResult(BASE, None, (seed,), self.base.answers)
        return [base, *(self._run(name) for name in self.experiment.runs)]

    def _run(self, name: str) -> ModelResult:
        seeds: list[SeedResult] = []
        answers: Any = {}
        objective = ""
        for seed, config in self.experiment.runs[name].items():
            objective = config.loss
            self._number += 1
            result, evaluated = self._attempt(name, seed, config)
            seeds.append(result)
            answers = answers or (evaluated.answers if evaluated else {})
        return ModelResult(name, objective, tuple(seeds), answers)

    def _attempt(self, name: str, seed: int, config: TrainingConfig) -> tuple[SeedResult, Evaluated | None]:
        """Train and evaluate one run; whatever goes wrong is the run's own failure, and the others go on."""
        total = sum(len(seeds) for seeds in self.experiment.runs.values())
        label = f"{name}, seed {seed} ({self._number}/{total})"
        path: Path | None = None
        try:
            identity = run_identity(config)
            if self.experiment.evaluate_every is not None:
                identity = digest([identity, self.experiment.evaluate_every])  # it has to have those checkpoints
            path = self.output / "runs" / f"{name}-seed{seed}-{identity[:8]}"
            started = time.perf_counter()
            run, reused = self._trained(config.model_copy(update={"output_dir": path}), path, label)
            training_seconds = 0.0 if reused else time.perf_counter() - started
            self._say(f"evaluating {label}")
            kept_as = f"{name}-seed{seed}"
            on_the_way = self._scores_on_the_way(run, kept_as, identity)
            evaluated = self.evaluator.run(kept_as, run.config, run.model_path, identity)
        except Interrupted:
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, TutelageError) else f"{type(error).__name__}: {error}"
            logger.warning("run %s, seed %d failed", name, seed, exc_info=error)
            self._say(f"warning: {label} failed and is left out: {reason}")
            failed = SeedResult(seed, Status.FAILED, reason, config=config.flat(), run_path=str(path) if path else None)
            return failed, None
        result = SeedResult(
            seed=seed,
            scores=evaluated.scores,
            failed=evaluated.failed,
            curves=_curves(run) | on_the_way,
            config=run.config.flat(),
            run_path=str(run.path),
            reused=reused,
            training_seconds=training_seconds or _recorded_seconds(run),
            evaluation_seconds=evaluated.seconds,
        )
        return result, evaluated

    def _trained(self, config: TrainingConfig, path: Path, label: str) -> tuple[Run, bool]:
        """The finished run in this folder: as it was found (True), continued, or trained from the start."""
        resume: Path | None = None
        if path.exists():
            run = Run.open(path) if (path / "run.json").exists() else None
            if run is not None and run.is_finished:
                self._say(f"{label}: trained before, used again")
                return run, True
            try:
                latest_checkpoint(path)
                resume = path
            except ResumeError:
                shutil.rmtree(path)  # stopped before its first checkpoint
        self._say(f"{'continuing' if resume else 'training'} {label}")
        return train(Run.open(path).config if resume else config, resume=resume, console=self.console), False

    def _scores_on_the_way(self, run: Run, name: str, identity: str) -> dict[str, Curve]:
        """Means of all measures at every checkpoint, where `evaluate.every` asks for them; step 0 is the base."""
        if self.experiment.evaluate_every is None or self.base is None:
            return {}
        names = [path.name for path in run.path.iterdir() if path.name.startswith("checkpoint-")]
        steps = sorted(int(name.partition("-")[2]) for name in names)
        means = {0: self.base.means}
        for step in steps:
            folder, what = run.path / f"checkpoint-{step}", f"{identity}-{step}"
            means[step] = self.evaluator.run(f"{name}-step{step}", run.config, folder, what).means
        return {
            f"{ON_THE_WAY}{measure}": [(step, means[step][measure]) for step in means if measure in means[step]]
            for measure in self.base.means
        }

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)


def _curves(run: Run) -> dict[str, Curve]:
    """What the panels show, from the run's own log."""
    curves: dict[str, dict[int, float]] = {}
    for event in run.events(Tag.TRAIN, Tag.MONITORING):
        for metric, value in event.values.items():
            if is_shown(metric) and isinstance(value, int | float):
                curves.setdefault(metric, {})[event.step] = float(value)
    return {metric: sorted(points.items()) for metric, points in curves.items()}


def _recorded_seconds(run: Run) -> float:
    """How long a run took that was trained before: from its first event to its last, stops included."""
    events = run.events()
    return events[-1].time - events[0].time


def _results(experiment: Experiment, comparison: _Comparison, models: list[ModelResult]) -> ExperimentResults:
    assert comparison.base is not None
    record: dict[str, Any] = describe_run(experiment.first_config)
    return ExperimentResults(
        name=experiment.name,
        title=experiment.texts.title,
        model=experiment.first_config.model,
        seeds=experiment.seeds,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        measures=comparison.base.measures,
        models=tuple(models),
        data={path.name: data_hash(path) for path in sorted(experiment.data_files)},
        environment={key: record[key] for key in ("versions", "hardware", "git_commit")},
        introduction=experiment.texts.introduction,
        notes=experiment.texts.notes,
        sources=experiment.texts.sources,
    )
