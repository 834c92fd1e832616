"""trackio, tensorboard, wandb and mlflow beside `events.jsonl`: `transformers`' integrations, made safe to fail.

Not here: what is measured, and what each package needs (`sink_settings.py`). A sink that cannot start stops the run
before step 1; one that fails later is warned about once and training goes on, with the other sinks.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tutelage.errors import ConfigError
from tutelage.events import EventLog, Tag
from tutelage.monitoring.isolation import random_states_kept
from tutelage.monitoring.sink_settings import new_callback, opened, printed_to_log, require_package, settings_of

logger = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 3
"""After so many a sink is left alone: each try may wait for a server that is gone."""


class Sinks(TrainerCallback):
    """The sinks of `report_to` as one callback. Leave `TrainingArguments(report_to="none")`: this replaces it.

    It stands before `Monitor` among the callbacks, so that sinks have started when step 0 is measured. One callback
    for all, since the handler of `transformers` stops at the first one that raises. As a context it closes, on the
    way out, what the end of training did not. Raises ConfigError for a sink whose package is missing, and in
    `on_train_begin` for one that cannot start.
    """

    def __init__(self, names: Sequence[str], events: EventLog) -> None:
        self._events = events
        self._run = events.path.parent
        self._failures: dict[str, int] = {}
        self._warned: set[str] = set()
        self._opened: dict[str, contextlib.ExitStack] = {}
        self._sinks: dict[str, TrainerCallback] = {}
        for name in names:
            require_package(name)
            try:
                with self._guarded(name), settings_of(name, self._run):
                    self._sinks[name] = new_callback(name)
            except (ImportError, RuntimeError) as error:
                raise ConfigError(
                    f"report_to: {name} cannot be used ({error}); pip install {name}, or take it out of report_to"
                ) from error

    def __enter__(self) -> "Sinks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name in list(self._opened):
            with contextlib.suppress(Exception), self._guarded(name):
                self._opened.pop(name).__exit__(kind, error, traceback)

    def send(
        self,
        values: Mapping[str, float],
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Hand measured values to every sink, at the present step."""
        self._forward("on_log", args, state, control, logs=dict(values), **kwargs)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for name, sink in self._sinks.items():
            try:
                with self._guarded(name):
                    if state.is_world_process_zero:
                        self._opened[name] = contextlib.ExitStack()
                        self._opened[name].enter_context(opened(name, self._run))
                    sink.on_train_begin(args, state, control, **kwargs)
            except Exception as error:
                raise ConfigError(
                    f"report_to: {name} did not start ({_sentence(error)}); mend its settings, or take it out of "
                    "report_to"
                ) from error

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._forward("on_log", args, state, control, **kwargs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._forward("on_save", args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._forward("on_train_end", args, state, control, **kwargs)
        for name in list(self._opened):
            try:
                with self._guarded(name):
                    self._opened.pop(name).close()
            except Exception as error:
                self._warn(name, "on_train_end", state, error)

    def _forward(
        self, event: str, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for name, sink in self._sinks.items():
            if self._failures.get(name, 0) >= FAILURES_IN_A_ROW:
                continue
            try:
                with self._guarded(name):
                    getattr(sink, event)(args, state, control, **kwargs)
                self._failures[name] = 0
            except Exception as error:  # a sink is somebody else's code and network: whatever it raises
                self._failures[name] = self._failures.get(name, 0) + 1
                self._warn(name, event, state, error)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        with random_states_kept(), printed_to_log(name):  # some draw a name for the run
            yield

    def _warn(self, name: str, event: str, state: TrainerState, error: Exception) -> None:
        if name in self._warned:
            return
        self._warned.add(name)
        message = (
            f"sink {name} failed in {event} ({type(error).__name__}: {_sentence(error)}); training goes on, and after "
            f"{FAILURES_IN_A_ROW} failures in a row without it"
        )
        logger.warning(message)
        if state.is_world_process_zero:
            self._events.write(state.global_step, Tag.WARNING, {"source": name, "message": message})


def _sentence(error: Exception) -> str:
    """The error in one line: some come with pages of advice."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
