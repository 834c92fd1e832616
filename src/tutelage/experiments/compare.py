"""`run_experiment`: base and runs, trained and evaluated one after another, then results, figures and report.

What is there already is used again: finished runs, checkpoints of stopped ones, outcomes of evaluations. Not here: what
is compared (`specification.py`), how a model is asked (`evaluate.py`).
"""

import contextlib
import itertools
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from tutelage.client.errors import JobFailed, ServerError
from tutelage.config import TrainingConfig
from tutelage.errors import (
    DataError,
    Interrupted,
    ResumeError,
    TrainingError,
    TutelageError,
)
from tutelage.events import Tag
from tutelage.experiments.curves import ON_THE_WAY, is_shown
from tutelage.experiments.evaluate import Evaluated, Evaluator
from tutelage.experiments.figures import write_figures
from tutelage.experiments.planning import (
    check_experiment,
    finished_run,
    folder_name,
    identities_of,
    outcomes_name,
    unequal_passes,
)
from tutelage.experiments.remote import RemoteRuns
from tutelage.experiments.report import write_report
from tutelage.experiments.results import Curve, ExperimentResults, ModelResult, SeedResult, Status
from tutelage.experiments.specification import BASE, Chain, Experiment, RunOn
from tutelage.experiments.tables import write_results
from tutelage.files import make_folder, only_process_in
from tutelage.training import Run, train
from tutelage.training.checkpoints import latest_checkpoint
from tutelage.training.record import describe_run, read_record

logger = logging.getLogger(__name__)

FROM_THE_START = ("kl_vs_base", "delta_w_norm")
"""Curves of what a run measures against the weights it began with."""

_GOES_ON = "what is done stays in {output}: the same command goes on from there; no report was written"
ENVIRONMENT = ("versions", "hardware", "git_commit")
"""What the report says of where it was made, from a record such as `run.json`."""


def run_experiment(experiment: Experiment, output: Path, console: Console) -> ExperimentResults:
    """Train and evaluate everything, write results, figures and report to `output`, and return the results.

    A run with a seed goes to `output/runs/<name>-seed<seed>-<hash of what it is>`, with stages a folder each; what is
    finished there is used again. A run that fails is reported, marked in the results and left out of every table;
    TrainingError if none is left (JobFailed if their jobs failed), and the errors of `check_experiment` before anything
    is done. Raises Interrupted on ctrl-C, and ServerError where the server of `run_on` is gone: what is done stays, and
    the same command goes on from there.
    """
    planned = check_experiment(experiment, output)
    if (remark := unequal_passes(planned, experiment.stages)) is not None:
        console.print(f"note: {remark}", highlight=False, markup=False)
    with only_process_in(output, "--output"):
        return _run_checked(experiment, output, console)


def _run_checked(experiment: Experiment, output: Path, console: Console) -> ExperimentResults:
    comparison = _Comparison(experiment, output, console)
    try:
        with comparison.finally_closed():
            models = comparison.models()
    except (KeyboardInterrupt, Interrupted) as stop:
        where = f"{str(stop).partition(';')[0]}; " if isinstance(stop, Interrupted) else "stopped; "
        raise Interrupted(f"{where}{_GOES_ON.format(output=output)}") from stop
    except ServerError as gone:
        raise type(gone)(f"{gone}; {_GOES_ON.format(output=output)}") from gone
    if not any(model.finished for model in models[1:]):
        reasons = "; ".join(
            f"{model.name} (seed {seed.seed}): {seed.error}" for model in models for seed in model.failed
        )
        kind = JobFailed if comparison.jobs_failed else TrainingError
        raise kind(f"{output}: no run finished, so there is nothing to compare; {reasons}")
    results = _results(experiment, comparison, models)
    console.print("writing results, figures and report", highlight=False)
    write_results(results, output)
    write_figures(results, output)
    write_report(results, output)
    return results


class _Comparison:
    """The work on one experiment in one folder."""

    def __init__(self, experiment: Experiment, output: Path, console: Console) -> None:
        self.experiment, self.output, self.console = experiment, output, console
        self.evaluator = Evaluator(experiment, output / "evaluations", lambda text: self._say(f"  {text}"))
        self.base: Evaluated | None = None
        self.jobs_failed = False
        self._number = 0
        self._remote = RemoteRuns(self._say, experiment.scheduling) if experiment.run_on is RunOn.SERVER else None

    def models(self) -> list[ModelResult]:
        """The base, then every run."""
        if self._remote is not None:
            self._remote.submit_all(self._first_stages())
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

    @contextlib.contextmanager
    def finally_closed(self) -> Iterator[None]:
        """Give back what it holds, however the work inside ends."""
        try:
            yield
        finally:
            if self._remote is not None:
                self._remote.close()

    def _first_stages(self) -> Iterator[TrainingConfig]:
        """Of the runs that are not there yet."""
        for name, seeds in self.experiment.runs.items():
            for seed, chain in seeds.items():
                identity = identities_of(self.experiment, chain)[0]
                if finished_run(self._folder(name, seed, 0, identity)) is None:
                    yield chain[0]

    def _folder(self, name: str, seed: int, number: int, identity: str) -> Path:
        return self.output / "runs" / folder_name(self.experiment, name, seed, number, identity)

    def _run(self, name: str) -> ModelResult:
        seeds: list[SeedResult] = []
        answers: Any = {}
        objective = ""
        for seed, chain in self.experiment.runs[name].items():
            objective = chain[0].loss
            self._number += 1
            result, evaluated = self._attempt(name, seed, chain)
            seeds.append(result)
            answers = answers or (evaluated.answers if evaluated else {})
        return ModelResult(name, objective, tuple(seeds), answers)

    def _attempt(self, name: str, seed: int, chain: Chain) -> tuple[SeedResult, Evaluated | None]:
        """Train and evaluate one run, stage by stage; what goes wrong is its own failure, and the others go on."""
        total = sum(len(seeds) for seeds in self.experiment.runs.values())
        label = f"{name}, seed {seed} ({self._number}/{total})"
        done: list[_Stage] = []
        try:
            identities = identities_of(self.experiment, chain)
            for number in range(len(chain)):
                done.append(self._stage(name, seed, chain, number, done, label, identities[number]))
        except (Interrupted, ServerError):
            raise
        except Exception as error:
            self.jobs_failed |= isinstance(error, JobFailed)
            reason = str(error) if isinstance(error, TutelageError) else f"{type(error).__name__}: {error}"
            if self.experiment.stages:
                reason = f"stage {self.experiment.stages[len(done)]}: {reason}"
            logger.warning("run %s, seed %d failed", name, seed, exc_info=error)
            self._say(f"warning: {label} failed and is left out: {reason}")
            path = str(done[-1].run.path) if done else None
            return SeedResult(seed, Status.FAILED, reason, config=self._config(chain), run_path=path), None
        last = done[-1]
        result = SeedResult(
            seed=seed,
            scores=last.evaluated.scores,
            failed=last.evaluated.failed,
            curves=last.curves,
            config=self._config(chain),
            environments={
                name: {key: value for key, value in read_record(stage.run.path).items() if key in ENVIRONMENT}
                for name, stage in zip(self.experiment.stages or ("",), done, strict=True)
            },
            run_path=str(last.run.path),
            after={name: stage.evaluated.scores for name, stage in zip(self.experiment.stages, done, strict=False)},
            reused=all(stage.reused for stage in done),
            training_seconds=sum(stage.training_seconds for stage in done),
            evaluation_seconds=sum(stage.evaluated.seconds for stage in done),
        )
        return result, last.evaluated

    def _config(self, chain: Chain) -> dict[str, Any]:
        """The options of the first stage; where a later one has another value, that option's values by stage."""
        flat = [config.flat() for config in chain]
        return {
            name: flat[0].get(name)
            if all(options.get(name) == flat[0].get(name) for options in flat)
            else {stage: options.get(name) for stage, options in zip(self.experiment.stages, flat, strict=True)}
            for name in dict.fromkeys(name for options in flat for name in options)
        }

    def _stage(
        self, name: str, seed: int, chain: Chain, number: int, before: "list[_Stage]", label: str, identity: str
    ) -> "_Stage":
        """One stage, trained and evaluated; it begins with the model of the stage before it."""
        if identities_of(self.experiment, chain)[number] != identity:
            raise DataError(
                "a file it learns from or is measured on changed since it began; start the comparison again"
            )
        kept_as = outcomes_name(self.experiment, name, seed, number)
        if self.experiment.stages:
            label = f"{label}, {self.experiment.stages[number]}"
        path = self._folder(name, seed, number, identity)
        changes: dict[str, Any] = {"output_dir": path}
        if before:
            changes["model"] = str(before[-1].run.model_path)
        run, reused = self._trained(chain[number].model_copy(update=changes), path, label)
        self._say(f"evaluating {label}")
        # Drift is from the model before the first stage, whose config the first stage's is.
        on_the_way = self._scores_on_the_way(run, chain[0], kept_as, identity, later=number > 0)
        evaluated = self.evaluator.run(kept_as, chain[0], run.model_path, identity)
        own = _curves(run)
        if self.experiment.stages:  # a stage measures from its own start: joined, that would be no curve of anything
            own = {name: curve for name, curve in own.items() if name not in FROM_THE_START}
        curves = _joined(before[-1].curves if before else {}, own | on_the_way)
        return _Stage(run, reused, _training_seconds(run), evaluated, curves)

    def _trained(self, config: TrainingConfig, path: Path, label: str) -> tuple[Run, bool]:
        """The finished run in this folder: as it was found (True), continued, or trained from the start."""
        resume: Path | None = None
        if path.exists():
            run = finished_run(path)
            if run is not None:
                self._say(f"{label}: trained before, used again")
                return run, True
            try:
                latest_checkpoint(path)
                resume = path
            except ResumeError:
                shutil.rmtree(path)  # stopped before its first checkpoint
        if self._remote is not None and resume is None:
            make_folder(path.parent, "--output")
            return self._remote.train(config, path, label), False
        self._say(f"{'continuing' if resume else 'training'} {label}")
        return train(Run.open(path).config if resume else config, resume=resume, console=self.console), False

    def _scores_on_the_way(
        self, run: Run, config: TrainingConfig, name: str, identity: str, *, later: bool
    ) -> dict[str, Curve]:
        """Means of all measures at every checkpoint, where `evaluate.every` asks for them; step 0 is the base.

        later: of a stage behind the first, whose step 0 is the last step of the stage before it.
        """
        if self.experiment.evaluate_every is None or self.base is None:
            return {}
        names = [path.name for path in run.path.iterdir() if path.name.startswith("checkpoint-")]
        steps = sorted(int(name.partition("-")[2]) for name in names)
        means = {} if later else {0: self.base.means}
        for step in steps:
            folder, what = run.path / f"checkpoint-{step}", f"{identity}-{step}"
            means[step] = self.evaluator.run(f"{name}-step{step}", config, folder, what).means
        return {
            f"{ON_THE_WAY}{measure}": [(step, means[step][measure]) for step in means if measure in means[step]]
            for measure in self.base.means
        }

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)


@dataclass(frozen=True)
class _Stage:
    """What one stage of a run left. curves: of this stage behind those of the stages before it."""

    run: Run
    reused: bool
    training_seconds: float
    evaluated: Evaluated
    curves: dict[str, Curve]


def _joined(before: dict[str, Curve], curves: dict[str, Curve]) -> dict[str, Curve]:
    """Curves one behind the other: a stage counts its steps from where the one before it ended."""
    offset = max((curve[-1][0] for curve in before.values() if curve), default=0)
    return {
        name: [*before.get(name, []), *((step + offset, value) for step, value in curves.get(name, []))]
        for name in dict.fromkeys((*before, *curves))
    }


def _curves(run: Run) -> dict[str, Curve]:
    """What the panels show, from the run's own log."""
    curves: dict[str, dict[int, float]] = {}
    for event in run.events(Tag.TRAIN, Tag.MONITORING):
        for metric, value in event.values.items():
            if is_shown(metric) and isinstance(value, int | float):
                curves.setdefault(metric, {})[event.step] = float(value)
    return {metric: sorted(points.items()) for metric, points in curves.items()}


def _training_seconds(run: Run) -> float:
    """From the first event of each sitting to its last: what a run that was continued took, without the pauses."""
    events = run.events()
    pairs = itertools.pairwise(events)
    return sum(later.time - earlier.time for earlier, later in pairs if later.tag is not Tag.START)


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
        stages=experiment.stages,
        data=experiment.data,
        environment={key: record[key] for key in ENVIRONMENT},
        introduction=experiment.texts.introduction,
        notes=experiment.texts.notes,
        sources=experiment.texts.sources,
    )
