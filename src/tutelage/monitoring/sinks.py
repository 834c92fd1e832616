"""trackio, tensorboard, wandb and mlflow beside `events.jsonl`: `transformers`' integrations, made safe to fail.

Not here: what is measured. A sink that cannot start stops the run before step 1; one that fails later is warned
about once and training goes on, with the other sinks.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from tutelage.errors import ConfigError
from tutelage.events import EventLog, Tag
from tutelage.monitoring.isolation import random_states_kept

logger = logging.getLogger(__name__)


class Sinks(TrainerCallback):
    """The sinks of `report_to` as one callback. Leave `TrainingArguments(report_to="none")`: this replaces it.

    It stands before `Monitor` among the callbacks, so that sinks have started when step 0 is measured. One callback
    for all, since the handler of `transformers` stops at the first one that raises. Raises ConfigError for a sink
    whose package is missing, and in `on_train_begin` for one that cannot start.
    """

    def __init__(self, names: Sequence[str], events: EventLog) -> None:
        self._events = events
        self._failed: set[str] = set()
        self._sinks: dict[str, TrainerCallback] = {}
        for name in names:
            try:
                with random_states_kept():
                    self._sinks[name] = INTEGRATION_TO_CALLBACK[name]()
            except (ImportError, RuntimeError) as error:
                raise ConfigError(
                    f"report_to: {name} cannot be used ({error}); pip install {name}, or take it out of report_to"
                ) from error

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
                with random_states_kept():
                    sink.on_train_begin(args, state, control, **kwargs)
            except Exception as error:
                raise ConfigError(
                    f"report_to: {name} did not start ({error}); mend its settings, or take it out of report_to"
                ) from error

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._forward("on_log", args, state, control, **kwargs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._forward("on_save", args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._forward("on_train_end", args, state, control, **kwargs)

    def _forward(
        self, event: str, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for name, sink in self._sinks.items():
            try:
                with random_states_kept():  # some draw a name for the run
                    getattr(sink, event)(args, state, control, **kwargs)
            except Exception as error:  # a sink is somebody else's code and network: whatever it raises
                self._warn(name, event, state, error)

    def _warn(self, name: str, event: str, state: TrainerState, error: Exception) -> None:
        if name in self._failed:
            return
        self._failed.add(name)
        message = f"sink {name} failed in {event} ({type(error).__name__}: {error}); training goes on"
        logger.warning(message)
        if state.is_world_process_zero:
            self._events.write(state.global_step, Tag.WARNING, {"source": name, "message": message})
