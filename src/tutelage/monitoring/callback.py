"""`Monitor`: when to measure what during a run, and where the values go. Not here: the measurements themselves."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tutelage.config import TrainingConfig
from tutelage.data.chat_template import ChatTemplate
from tutelage.errors import TutelageError
from tutelage.events import EventLog, Tag
from tutelage.files import JsonLinesFile
from tutelage.models import WeightCopy
from tutelage.monitoring.directions import HiddenDirection
from tutelage.monitoring.drift import delta_w_norm, weight_diff_norm
from tutelage.monitoring.isolation import leaving_no_trace
from tutelage.monitoring.kl import KlToBase
from tutelage.monitoring.log_probs import AnswerSet
from tutelage.monitoring.prompts import encode_prompts, everyday_prompts, read_prompts
from tutelage.monitoring.samples import AnswerSampler
from tutelage.monitoring.sinks import Sinks

logger = logging.getLogger(__name__)

Values = dict[str, float]


@dataclass(frozen=True)
class _Measurement:
    """One thing that is measured at step 0, every so many steps, and at the last step."""

    name: str
    every_n_steps: int
    tag: Tag
    measure: Callable[[nn.Module, int], Values]

    def due(self, step: int, last_step: int) -> bool:
        return step % self.every_n_steps == 0 or step == last_step


class Monitor(TrainerCallback):
    """Measures drift, KL to base, directions, log-probabilities and samples without changing training.

    Call `setup` before step 1 and before a checkpoint is loaded: the weights it sees are θ_0, what drift and KL are
    measured against. When a run is continued, loading the model again with the run's own config and seed gives the
    same θ_0. `sinks`, where given, stands before the monitor among the trainer's callbacks.

    A measurement that fails later is warned about once, in one event, and training goes on without its values.
    Every rank sets up, so that a wrong file stops them all; rank zero alone measures and writes.
    """

    def __init__(
        self,
        config: TrainingConfig,
        template: ChatTemplate,
        events: EventLog,
        samples: JsonLinesFile,
        sinks: Sinks | None = None,
    ) -> None:
        self._config = config
        self._template = template
        self._events = events
        self._samples = samples
        self._sinks = sinks
        self._measurements: list[_Measurement] = []
        self._failed: set[str] = set()
        self._pending: tuple[int, Values] | None = None

    # --- before step 1 ------------------------------------------------------------------------------------------

    def setup(self, model: nn.Module) -> None:
        """Copy θ_0, read all files, let the base model answer the monitoring prompts, take the directions.

        Raises DataError or ConfigError for a file or an option that cannot be used.
        """
        with leaving_no_trace(model):
            self._measurements = [
                *self._weights_and_outputs(model),
                *(self._log_probs(name, model) for name in self._config.logp_callback_datasets),
                *(self._sampling(index, model) for index in range(len(self._config.sampling_callbacks))),
            ]

    def _weights_and_outputs(self, model: nn.Module) -> list[_Measurement]:
        config, template = self._config, self._template
        every = config.monitoring_eval_steps
        if every is None:
            return []
        base = WeightCopy.of(model)
        prompts = everyday_prompts() if config.monitoring_prompts is None else read_prompts(config.monitoring_prompts)
        prompt_ids = [item.ids for item in encode_prompts(prompts, template, model)]
        kl = KlToBase.prepare(model, base, prompts, template, config.monitoring_max_new_tokens)
        own_answers = config.monitoring_own_answers
        directions = [
            HiddenDirection.prepare(name, direction, model, template)
            for name, direction in config.monitoring_directions.items()
        ]

        def drift(model: nn.Module, step: int) -> Values:
            return {"weight_diff_norm": weight_diff_norm(model, base), "delta_w_norm": delta_w_norm(model, base)}

        def cosines(model: nn.Module, step: int) -> Values:
            parts = [direction.measure(model, prompt_ids) for direction in directions]
            return {name: value for part in parts for name, value in part.items()}

        return [
            _Measurement("weight drift", every, Tag.MONITORING, drift),
            _Measurement("kl_vs_base", every, Tag.MONITORING, lambda model, step: kl.measure(model, own_answers)),
            _Measurement("cos_sim", every, Tag.MONITORING, cosines),
        ]

    def _log_probs(self, name: str, model: nn.Module) -> _Measurement:
        config = self._config
        answers = AnswerSet.read(name, config.logp_callback_datasets[name], self._template, model)

        def measure(model: nn.Module, step: int) -> Values:
            scores = answers.score(model, config.eval_batch_size)
            if config.logp_per_token:
                for row in scores.rows():
                    self._samples.append({"step": step, "tag": Tag.LOGPROB.value, **row})
            return scores.values()

        return _Measurement(f"logp_callback_datasets.{name}", config.eval_every_n_steps, Tag.LOGPROB, measure)

    def _sampling(self, index: int, model: nn.Module) -> _Measurement:
        options = self._config.sampling_callbacks[index]
        sampler = AnswerSampler.prepare(options, model, self._template, self._config.seed + index)

        def measure(model: nn.Module, step: int) -> Values:
            for row in sampler.sample(model, step):
                self._samples.append(row)
            return {}

        return _Measurement(f"sampling_callbacks[{index}]", options.every_n_steps, Tag.MONITORING, measure)

    # --- during training ----------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._measure_due(args, state, control, **kwargs)
            self._flush(args, state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._measure_due(args, state, control, **kwargs)
        if not control.should_log:  # else `on_log` follows at once, with loss and grad_norm of this step
            self._flush(args, state, control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        known = {name: value for name, value in (logs or {}).items() if name in ("loss", "grad_norm")}
        self._flush(args, state, control, known)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._flush(args, state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._flush(args, state, control)

    def _measure_due(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure what is due at this step; monitoring values wait for `_flush`, the others are written now."""
        if not state.is_world_process_zero:
            return
        step, model = state.global_step, kwargs["model"]
        values: dict[Tag, Values] = {}
        for measurement in self._measurements:
            if measurement.due(step, state.max_steps):
                values.setdefault(measurement.tag, {}).update(self._attempt(measurement, model, step))
        monitoring = values.pop(Tag.MONITORING, None)
        if monitoring:
            self._pending = (step, monitoring)
        for tag, measured in values.items():
            self._write(step, tag, measured, args, state, control)

    def _attempt(self, measurement: _Measurement, model: nn.Module, step: int) -> Values:
        try:
            with leaving_no_trace(model):
                return measurement.measure(model, step)
        except Exception as error:  # out of memory, a full disk, a numerical fault: none is worth the run
            if measurement.name not in self._failed:
                self._failed.add(measurement.name)
                reason = str(error) if isinstance(error, TutelageError) else f"{type(error).__name__}: {error}"
                message = f"measuring {measurement.name} failed ({reason}); training goes on without it"
                logger.warning(message)
                self._events.write(step, Tag.WARNING, {"source": measurement.name, "message": message})
            return {}

    def _flush(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, known: Values | None = None
    ) -> None:
        if self._pending is None:
            return
        (step, values), self._pending = self._pending, None
        self._write(step, Tag.MONITORING, values | (known or {}), args, state, control)

    def _write(
        self,
        step: int,
        tag: Tag,
        values: Values,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
    ) -> None:
        if not values:
            return
        self._events.write(step, tag, values)
        if self._sinks is not None:
            named = {f"{tag.value}/{name}": value for name, value in values.items()}
            self._sinks.send(named, args, state, control)
