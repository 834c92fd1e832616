"""`experiment.yaml`: what may stand in it, and how it becomes an `Experiment`. Everything is checked here at once.

Not here: what an entry of `evaluate` may be (`evaluation.suite`), what an option of a run may be (`config`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tutelage.config import TrainingConfig, config_beside, read_options
from tutelage.config.faults import checked
from tutelage.data.jsonl import data_hash
from tutelage.errors import ConfigError, nearest
from tutelage.evaluation.suite import read_suite
from tutelage.experiments.specification import Chain, Experiment, RunOn, Scheduling, Texts
from tutelage.jobs.requirements import cloud_type_of, hardware_of
from tutelage.monitoring import everyday_prompts, read_prompts

MONITOR = {
    "every": "monitoring_eval_steps",
    "prompts": "monitoring_prompts",
    "max_new_tokens": "monitoring_max_new_tokens",
    "own_answers": "monitoring_own_answers",
    "directions": "monitoring_directions",
}
"""What `monitor` may hold, and the option of a run it stands for."""

LARGEST_SEED = 2**32 - 1
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED, strict=True)]
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]


class Drift(BaseModel):
    """On what the drift from the base model is measured at the end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: Path | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] = 48


class ExperimentFile(BaseModel):
    """The keys of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    base: dict[str, Any]
    runs: dict[Name, dict[str, Any]]
    stages: dict[Name, dict[str, Any]] = {}
    seeds: list[Seed] | None = None
    evaluate: dict[str, Any] = {}
    monitor: dict[str, Any] = {}
    drift: Drift = Drift()
    run_on: RunOn = RunOn.LOCAL
    requires_vram_gb: Annotated[float, Field(ge=0)] | Literal["guess"] | None = None
    allowed_hardware: list[str] | None = None
    cloud_type: str | None = None
    title: str | None = None
    introduction: str = ""
    notes: list[str] = []
    sources: list[str] = []

    @field_validator("seeds", mode="before")
    @classmethod
    def _is_a_list(cls, seeds: Any) -> Any:
        if seeds is not None and (not isinstance(seeds, list) or not seeds):
            raise ValueError("give a list, such as [1, 2, 3], or leave it out for the seed of base")
        return seeds


def load_experiment(path: Path) -> Experiment:
    """The experiment in a YAML file. Input files in it are relative to the file's folder.

    Every run's config, every evaluation and every file they name is read and checked. Raises ConfigError, DataError.
    """
    content = read_options(path)
    file = checked(ExperimentFile, content, str(path))
    seeds = file.seeds or [file.base.get("seed", TrainingConfig.model_fields["seed"].default)]
    if not all(type(seed) is int and 0 <= seed <= LARGEST_SEED for seed in seeds):
        raise ConfigError(f"{path}: base: seed: {seeds[0]!r} does not fit; give a number from 0 to {LARGEST_SEED}")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{path}: seeds: {seeds} names one twice; name each once")
    for group, entries in (("runs", file.runs), ("stages", file.stages)):
        for name, options in entries.items():
            if "seed" in options:
                raise ConfigError(f"{path}: {group}.{name}: 'seed' stands in 'seeds', for all runs; move it there")
    monitored = _monitor_options(file.monitor, file.base, path)
    evaluate = dict(file.evaluate)
    every = evaluate.pop("every", None)
    _check_steps(every, f"{path}: evaluate.every")
    prompts = everyday_prompts() if file.drift.prompts is None else read_prompts(path.parent / file.drift.prompts)
    runs = {
        name: {
            seed: tuple(
                _config(path, name, seed, _merged(file.base, monitored, stage | options), every)
                for stage in (file.stages.values() or [{}])
            )
            for seed in seeds
        }
        for name, options in file.runs.items()
    }
    configs = [config for seeds in runs.values() for chain in seeds.values() for config in chain]
    if monitored and all(config.monitoring_eval_steps is None for config in configs):
        raise ConfigError(f"{path}: monitor: nothing is measured without 'every'; give a number of steps")
    evaluations = tuple(read_suite(evaluate, path.parent, f"{path}: evaluate")) if evaluate else ()
    try:
        return Experiment(
            name=file.name,
            texts=Texts(file.title or file.name, file.introduction, tuple(file.notes), tuple(file.sources)),
            runs=runs,
            stages=tuple(file.stages),
            evaluations=evaluations,
            drift_prompts=tuple(prompts),
            drift_max_new_tokens=file.drift.max_new_tokens,
            evaluate_every=every,
            run_on=file.run_on,
            scheduling=_scheduling(file, path),
            data=_hashes(runs, file, path.parent)
            | {name: sha for one in evaluations for name, sha in one.identity.get("sha256", {}).items()},
        )
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(str(path)) else f"{path}: {text}") from error


def _scheduling(file: ExperimentFile, path: Path) -> Scheduling:
    found = Scheduling(
        requires_vram_gb=file.requires_vram_gb,
        allowed_hardware=None if file.allowed_hardware is None else tuple(map(hardware_of, file.allowed_hardware)),
        cloud_type=None if file.cloud_type is None else cloud_type_of(file.cloud_type).value,
    )
    if found.given() and file.run_on is not RunOn.SERVER:
        name = next(iter(found.given()))
        raise ConfigError(f"{path}: {name}: is for workers of a server; set run_on: server, or leave it out")
    return found


def _config(path: Path, name: str, seed: int, options: Mapping[str, Any], every: int | None) -> TrainingConfig:
    if "output_dir" in options:
        raise ConfigError(f"{path}: runs.{name}: 'output_dir' is set by the comparison; leave it out")
    if every is not None:
        if options.get("save_total_limit") is not None:
            raise ConfigError(
                f"{path}: runs.{name}: save_total_limit throws away checkpoints that evaluate.every needs; leave it out"
            )
        if options.get("save_steps", every) != every:
            raise ConfigError(f"{path}: runs.{name}: evaluate.every sets save_steps, to {every}; leave save_steps out")
        options = {**options, "save_steps": every}
    return config_beside({**options, "seed": seed}, path.parent, f"{path}: runs.{name}")


def _monitor_options(monitor: Mapping[str, Any], base: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The options of all runs that `monitor` stands for."""
    for key in monitor:
        if key not in MONITOR:
            raise ConfigError(f"{path}: monitor: '{key}' is not known{nearest(key, MONITOR)}")
        if MONITOR[key] in base:
            raise ConfigError(f"{path}: monitor.{key} and base.{MONITOR[key]} are the same option; leave one out")
    _check_steps(monitor.get("every"), f"{path}: monitor.every")
    return {MONITOR[key]: value for key, value in monitor.items()}


def _merged(base: Mapping[str, Any], monitored: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A run's own options win; what `monitor` says is none of a run that measures nothing."""
    merged = {**base, **monitored, **own}
    if merged.get(MONITOR["every"]) is None:
        return {name: value for name, value in merged.items() if name not in monitored or name in own}
    return merged


def _check_steps(every: Any, place: str) -> None:
    if every is not None and (type(every) is not int or every < 1):
        raise ConfigError(f"{place}: {every!r} does not fit; give a number of steps, 1 or more")


def _hashes(runs: Mapping[str, Mapping[int, Chain]], file: ExperimentFile, folder: Path) -> dict[str, str]:
    """Taken when the experiment is read: a file that changes afterwards is not what was compared."""
    configs = [config for seeds in runs.values() for chain in seeds.values() for config in chain]
    found = {path for config in configs for path in (config.training_file, config.test_file) if path is not None}
    if file.drift.prompts is not None:
        found.add(folder / file.drift.prompts)
    return {_written(path, folder): data_hash(path) for path in sorted(found)}


def _written(path: Path, folder: Path) -> str:
    """As it is called in the experiment's folder; the whole path of a file elsewhere."""
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
