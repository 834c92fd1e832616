"""`train(config)`: from a config to a run folder, and `Run`, what was left there. Not here: the training loop."""

import contextlib
import logging
import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PrinterCallback, ProgressCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from tutelage.config import TrainingConfig
from tutelage.data.conversations import data_hash
from tutelage.errors import ConfigError, Interrupted, OutputError, ResumeError, TutelageError
from tutelage.events import Event, EventLog, Tag
from tutelage.files import JsonLinesFile, make_folder, require_new_folder, write_json
from tutelage.models import LoadedModel, load_model
from tutelage.monitoring import Monitor, Sinks
from tutelage.training.build import build_trainer
from tutelage.training.callbacks import KeepNewest, ShowProgress, StopOnSignal
from tutelage.training.checkpoints import discard_incomplete, is_last, latest_checkpoint
from tutelage.training.checks import checked_inputs
from tutelage.training.denormals import denormals_flushed
from tutelage.training.export import export_model
from tutelage.training.inputs import TrainingInputs
from tutelage.training.record import describe_run, read_record, run_name
from tutelage.training.run_trainer import RunTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its config and what it logged."""

    path: Path
    config: TrainingConfig

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """A run on disk. Raises ResumeError where the folder is none."""
        path = Path(path)
        try:
            return cls(path, TrainingConfig(**read_record(path)["config"]))
        except ConfigError as error:
            raise ResumeError(f"{path}/run.json: {error}; another version of tutelage wrote this run") from error

    def events(self, *tags: Tag) -> list[Event]:
        """Events in order; those of abandoned steps are left out."""
        return EventLog(self.path / "events.jsonl").read(*tags)

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to its end and its model is there."""
        ends = self.events(Tag.END)
        return bool(ends) and ends[-1].values["reason"] == "finished" and self.model_path.is_dir()

    @property
    def metrics(self) -> dict[str, Any]:
        """The newest value of every training, evaluation and monitoring metric."""
        newest: dict[str, Any] = {}
        for event in self.events(Tag.TRAIN, Tag.EVAL, Tag.MONITORING):
            newest |= event.values
        return newest

    @property
    def model_path(self) -> Path:
        """The trained model: `model/`, or `adapter/` if it was not merged."""
        return next(
            (self.path / name for name in ("model", "adapter") if (self.path / name).is_dir()), self.path / "model"
        )

    def load(self) -> LoadedModel:
        """The trained model and its tokenizer, ready to use."""
        return load_model(self.config, str(self.model_path))


@denormals_flushed()
def train(config: TrainingConfig, *, resume: Path | str | None = None, console: Console | None = None) -> Run:
    """Train as the config says and return the run.

    resume: the folder of a run to continue from its newest complete checkpoint; its own config is used, and
    `config` must be that. Raises TutelageError; on ctrl-C `Interrupted`, after a checkpoint was written. A new run
    that fails before its first step is done leaves nothing.
    """
    resume_run = Path(resume) if resume is not None else None
    checkpoint = latest_checkpoint(resume_run) if resume_run else None
    is_main = os.environ.get("RANK", "0") == "0"
    run_path = resume_run or new_run_folder(config, probe=is_main)
    inputs = checked_inputs(config, ask_reward=checkpoint is None or not is_last(checkpoint))
    if resume_run is not None:
        _require_same_data(resume_run, config)
    set_seed(config.seed)
    loaded = load_model(config, inputs.source)
    console = (console or Console(stderr=True)) if is_main else Console(quiet=True)
    trainer: RunTrainer | None = None
    existed = run_path.exists()
    try:
        if is_main:
            make_folder(run_path, "output_dir")
            if resume_run is None:
                write_json(run_path / "run.json", describe_run(config))
            else:
                discard_incomplete(run_path)
        with _log_file(run_path / "log.txt" if is_main else None):
            for warning in inputs.warnings:
                logger.warning(warning)
                console.print(f"warning: {warning}", highlight=False, markup=False)
            trainer = build_trainer(config, inputs, loaded, run_path, EventLog(run_path / "events.jsonl"))
            _run_trainer(trainer, inputs, loaded, checkpoint, console)
    except (TutelageError, KeyboardInterrupt) as error:
        steps = trainer.state.global_step if trainer is not None else 0
        if is_main and resume_run is None and steps == 0:
            _remove_run(run_path, keep_folder=existed)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(_stopped_at_once(run_path, steps)) from error
        raise
    return Run(run_path, config)


def _run_trainer(
    trainer: RunTrainer, inputs: TrainingInputs, loaded: LoadedModel, checkpoint: Path | None, console: Console
) -> None:
    config, events = trainer.config, trainer.events
    run_path = events.path.parent
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    progress = ShowProgress(config.loss, console)
    stop = StopOnSignal()
    sinks = Sinks(config.report_to, events)
    samples = JsonLinesFile(run_path / "samples.jsonl")
    monitor = Monitor(config, inputs.template, events, samples, sinks)
    monitor.setup(loaded.model)
    if trainer.is_world_process_zero():
        from_step = int(checkpoint.name.partition("-")[2]) if checkpoint else 0
        events.write(from_step, Tag.START, {"from_step": from_step})
        for warning in inputs.warnings:
            events.write(from_step, Tag.WARNING, {"message": warning})
    if checkpoint is None:
        trainer.check_first(inputs.train_items, console)
    for callback in (*trainer.own_callbacks(), sinks, monitor, progress, stop, KeepNewest(config.save_total_limit)):
        trainer.add_callback(callback)
    reason = "failed"
    try:
        with stop, sinks:
            if checkpoint is not None and is_last(checkpoint):
                _load_last(trainer, checkpoint)
            else:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if not stop.stopped:
            export_model(config, trainer, loaded, run_path)
            trainer.accelerator.wait_for_everyone()  # the model is there on return, in every process
        reason = "interrupted" if stop.stopped else "finished"
    finally:
        progress.close()
        if trainer.is_world_process_zero():
            # The error in flight says more than a second one about the same full disk.
            with contextlib.suppress(OutputError) if reason == "failed" else contextlib.nullcontext():
                events.write(trainer.state.global_step, Tag.END, {"reason": reason})
    if reason == "interrupted":
        raise Interrupted(
            f"stopped after step {trainer.state.global_step} of {trainer.state.max_steps}; "
            f"continue with: {resume_command(run_path)}"
        )


def _load_last(trainer: RunTrainer, checkpoint: Path) -> None:
    """What is left of a run whose steps are all done: its model is to be written. `train` would do one step more."""
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))


def new_run_folder(config: TrainingConfig, probe: bool = True) -> Path:
    """Where a new run would go. probe: raise OutputError if that holds something or cannot be written.

    Leaves nothing behind.
    """
    path = config.output_dir or Path("runs") / run_name(config)
    if probe:
        require_new_folder(path, "output_dir", "continue that run with --resume")
    return path


def _remove_run(path: Path, keep_folder: bool) -> None:
    """Take back what a run wrote before its first step; a folder that was there before stays, empty as it was."""
    if not keep_folder:
        shutil.rmtree(path, ignore_errors=True)
        return
    for entry in path.iterdir():
        shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def _stopped_at_once(run: Path, steps: int) -> str:
    if steps == 0:
        return "stopped before the first step was done; nothing was kept"
    try:
        checkpoint = latest_checkpoint(run)
    except ResumeError:
        return f"stopped in step {steps + 1}, before the first checkpoint; start anew, in another output_dir"
    return f"stopped in step {steps + 1}; continue from {checkpoint.name} with: {resume_command(run)}"


def resume_command(run: Path) -> str:
    """What to type to continue a run; paths with spaces are quoted."""
    return f"tutelage train --resume {shlex.quote(str(run))}"


def _require_same_data(run: Path, config: TrainingConfig) -> None:
    record = read_record(run)
    for path in (config.training_file, config.test_file):
        if path is not None and record.get("data", {}).get(str(path)) != data_hash(path):
            raise ResumeError(f"{path}: changed since {run} began; put the old file back, or start a new run")


class _LogFile(logging.FileHandler):
    """A log whose full disk is nobody's news: what the run itself cannot write is, and says so in one sentence."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """`logging` would print a traceback."""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def _log_file(path: Path | None) -> Iterator[None]:
    """Everything this package logs goes to `log.txt` too."""
    if path is None:
        yield
        return
    package = logging.getLogger("tutelage")
    try:
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another output_dir") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    except TutelageError as error:
        logger.error("%s", error)
        raise
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()
