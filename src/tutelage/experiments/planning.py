"""Before anything is trained: what of an experiment is there already, what is still to do, and whether that can work.

Not here: doing it (`compare.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tutelage.errors import ConfigError, DataError, ModelError, OutputError, TrainingError
from tutelage.experiments.identity import chain_identities, digest
from tutelage.experiments.specification import Chain, Experiment
from tutelage.training import Run
from tutelage.training.checks import checked_inputs
from tutelage.training.size import RunSize, size_of

UNEQUAL = 1.5
"""How much more often one run may go over its rows than another before it is said."""


@dataclass(frozen=True)
class PlannedRun:
    """A run that is still to be trained, as far as it is known before. seeds: those that are not done yet. sizes: one
    a stage. warnings: what was found in its rows. gold_rewards: one a stage, the mean of a few gold answers, where a
    reward gave it."""

    name: str
    seeds: tuple[int, ...]
    sizes: tuple[RunSize, ...]
    warnings: tuple[str, ...]
    gold_rewards: tuple[float | None, ...]


def check_experiment(experiment: Experiment, output: Path | None = None) -> list[PlannedRun]:
    """Everything that can be known before the first model is loaded: rows, rewards, judges, optimizers of every run.

    output: runs that are finished there need nothing of this any more. Returns the others. Raises ConfigError,
    DataError, ModelError, OutputError, TrainingError.
    """
    if output is not None and output.exists() and not output.is_dir():
        raise OutputError(f"--output: {output} is a file; name a folder")
    to_train: dict[str, dict[int, Chain]] = {}
    for name, seeds in experiment.runs.items():
        for seed, chain in seeds.items():
            if output is None or not is_trained(experiment, output, name, seed, chain):
                to_train.setdefault(name, {})[seed] = chain
    if to_train:  # else whatever is still to be asked is checked before that
        for evaluation in experiment.evaluations:
            evaluation.check()
    return [_planned(name, seeds) for name, seeds in to_train.items()]


def _planned(name: str, seeds: dict[int, Chain]) -> PlannedRun:
    """Seeds differ in nothing that could be wrong, so one of them stands for all."""
    sizes: list[RunSize] = []
    warnings: list[str] = []
    gold_rewards: list[float | None] = []
    for config in next(iter(seeds.values())):
        try:
            inputs = checked_inputs(config)
        except (ConfigError, DataError, ModelError, TrainingError) as error:
            raise type(error)(f"runs.{name}: {error}") from error
        sizes.append(size_of(config, inputs))
        warnings += inputs.warnings
        of_gold = inputs.scores.of_gold if inputs.scores is not None else None
        gold_rewards.append(of_gold["gold_reward"] if of_gold else None)
    return PlannedRun(name, tuple(seeds), tuple(sizes), tuple(dict.fromkeys(warnings)), tuple(gold_rewards))


def unequal_passes(planned: Sequence[PlannedRun], stages: Sequence[str]) -> str | None:
    """A sentence where runs go over their rows much more often than others: then more than an option is compared."""
    for number, stage in enumerate(stages or ("",)):
        passes = {run.name: run.sizes[number].passes for run in planned}
        if passes and max(passes.values()) > UNEQUAL * min(passes.values()):
            shown = ", ".join(f"{name} {value:.3g}" for name, value in passes.items())
            where = f"in stage {stage} " if stage else ""
            sizes = [run.sizes[number] for run in planned]
            packed, steps = any(size.is_packed for size in sizes), {(size.per_step, size.answers) for size in sizes}
            remedy = "; with packing: false a step is as many rows for all" * (packed and len(steps) == 1)
            return f"{where}the runs do not go over their rows equally often ({shown} times){remedy}"
    return None


def is_trained(experiment: Experiment, output: Path, name: str, seed: int, chain: Chain) -> bool:
    """Whether all stages of a run are done in that folder."""
    places = enumerate(identities_of(experiment, chain))
    folders = [output / "runs" / folder_name(experiment, name, seed, number, what) for number, what in places]
    return all(finished_run(folder) is not None for folder in folders)


def finished_run(folder: Path) -> Run | None:
    """The run in a folder, if it was trained to its end."""
    run = Run.open(folder) if (folder / "run.json").exists() else None
    return run if run is not None and run.is_finished else None


def identities_of(experiment: Experiment, chain: Chain) -> list[str]:
    """Of every stage's run."""
    every = experiment.evaluate_every
    identities = chain_identities(chain)
    # A run that is evaluated on the way has to have those checkpoints.
    return identities if every is None else [digest([one, every]) for one in identities]


def outcomes_name(experiment: Experiment, name: str, seed: int, number: int) -> str:
    """What the folder of a stage's outcomes is called, and that of its run begins with."""
    return "-".join([name, f"seed{seed}", *experiment.stages[number : number + 1]])


def folder_name(experiment: Experiment, name: str, seed: int, number: int, identity: str) -> str:
    """What the folder of a stage's run is called."""
    return f"{outcomes_name(experiment, name, seed, number)}-{identity[:8]}"
