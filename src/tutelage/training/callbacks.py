"""What happens around a step: progress, ctrl-C, old checkpoints. Not here: metrics (`BaseTrainer.log`)."""

import logging
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tutelage.training.checkpoints import discard_old

logger = logging.getLogger(__name__)


class KeepNewest(TrainerCallback):
    """`save_total_limit`: older checkpoints go once the new one is complete, so that there always is one."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._limit is not None and state.is_world_process_zero and args.output_dir is not None:
            discard_old(Path(args.output_dir), self._limit)


class StopOnSignal(TrainerCallback):
    """Ctrl-C and SIGTERM finish the step, write a checkpoint and stop; a second ctrl-C stops at once.

    A signal reaches each process at its own time, or only one of them; all stop after the same step.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("\nstopping after this step (once more to stop at once)", file=sys.stderr, flush=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.stopped = _any_process(self._asked, args)
        if self.stopped:
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopped and state.epoch is not None and not state.epoch.is_integer():
            control.should_evaluate = False  # transformers takes a stop within an epoch for its end


def _any_process(here: bool, args: TrainingArguments) -> bool:
    if args.world_size == 1:
        return here
    anywhere = torch.tensor(float(here), device=args.device)
    torch.distributed.all_reduce(anywhere, op=torch.distributed.ReduceOp.MAX)
    return bool(anywhere)


class ShowProgress(TrainerCallback):
    """A bar with loss, speed and time left on a terminal; one line per log where there is none.

    Before the first step's end the line says what is going on, since the first step can be long.
    """

    def __init__(self, name: str, console: Console) -> None:
        self._name = name
        self._console = console
        self._progress: Progress | None = None
        self._task: Any = None
        self._started = 0.0
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = time.perf_counter()
        self._first_step = state.global_step
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[metrics]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=False,
            )
            self._progress.start()
            self._task = self._progress.add_task(
                self._name, total=state.max_steps, completed=state.global_step, metrics="first step …"
            )
        else:
            self._console.print(f"{self._name}: {state.max_steps} steps", highlight=False)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        text = _summary(logs or {})
        if not text:
            return
        logger.info("%s step %d/%d: %s", self._name, state.global_step, state.max_steps, text)
        if self._progress is not None:
            self._progress.update(self._task, metrics=text)
        else:
            done = max(state.global_step - self._first_step, 1)
            left = (time.perf_counter() - self._started) / done * (state.max_steps - state.global_step)
            self._console.print(
                f"{self._name} step {state.global_step}/{state.max_steps}: {text}, {left:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back; also after an exception."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _summary(logs: dict[str, float]) -> str:
    parts = [f"{name} {logs[name]:.4g}" for name in ("loss", "nll", "eval_loss", "eval_nll") if name in logs]
    if "tokens_per_second" in logs:
        parts.append(f"{logs['tokens_per_second']:.0f} tokens/s")
    return ", ".join(parts)
