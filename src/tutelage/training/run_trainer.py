"""What every trainer of a run shares, ours and TRL's: metrics, events, complete checkpoints.

Not here: how a step's loss is normalised (`base_trainer.py`, `trl_trainers`), evaluation (`gold_evaluation.py`).
"""

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from rich.console import Console
from transformers import Trainer, TrainerCallback

from tutelage.config import TrainingConfig
from tutelage.data.rows import IGNORE_INDEX
from tutelage.errors import OutputError
from tutelage.events import EventLog, Tag
from tutelage.training.checkpoints import mark_complete
from tutelage.training.metrics import MetricSums

if TYPE_CHECKING:
    from tutelage.models import LoadedModel
    from tutelage.training.inputs import TrainingInputs

logger = logging.getLogger(__name__)

SHOWN_ROLLOUTS = 4
"""Rollouts of a step that go to `samples.jsonl`."""
CLOCK_METRICS = ("_runtime", "_samples_per_second", "_steps_per_second")
"""What `transformers` adds to an evaluation: how fast it went, batches that processes repeat included."""


class RunTrainer(Trainer):
    """A `transformers.Trainer` that writes a run's events and checkpoints. Stands before TRL's trainers as well."""

    # `transformers` declares both as optional; a run always has them.
    model: Any
    processing_class: Any
    train_dataset: Any
    eval_dataset: Any

    def __init__(self, config: TrainingConfig, events: EventLog, **arguments: Any) -> None:
        self.config = config
        self.events = events
        self.metrics = MetricSums()
        super().__init__(**arguments)
        self._tokens = 0
        self._tokens_to_add = 0
        self._last_log = time.perf_counter()

    @classmethod
    def build(
        cls, config: TrainingConfig, inputs: "TrainingInputs", loaded: "LoadedModel", run: Path, events: EventLog
    ) -> "RunTrainer":
        """A trainer that writes to the folder `run`. Raises ConfigError for what `transformers` refuses."""
        raise TypeError(f"{cls.__name__} cannot be built")

    # --- what an objective adds -----------------------------------------------------------------------------------

    def own_callbacks(self) -> list[TrainerCallback]:
        """Callbacks the objective needs; they stand before all others."""
        return []

    def check_first(self, rows: Sequence[Any], console: Console) -> None:
        """What is measured before step 1 of a new run, and may stop it."""

    def num_tokens(self, inputs: Mapping[str, Any]) -> int:
        """Tokens of the sequences of one micro-batch that train anything; padding and `FilledRows` are left out."""
        trained_BT = inputs["labels"] != IGNORE_INDEX
        if "attention_mask" in inputs:
            return int((inputs["attention_mask"].bool() & trained_BT.any(-1, keepdim=True)).sum())
        sequence_BT = (inputs["position_ids"] == 0).cumsum(-1)  # packed: all sequences in one row
        return int(torch.isin(sequence_BT, sequence_BT[trained_BT]).sum())

    def save_extra_state(self, folder: Path) -> None:
        """State of the objective that a checkpoint needs besides what `transformers` saves."""

    def load_extra_state(self, folder: Path) -> None:
        """The reverse of `save_extra_state`."""

    # --- metrics --------------------------------------------------------------------------------------------------

    def count_tokens(self, inputs: Mapping[str, Any]) -> None:
        """Add a micro-batch to what `tokens_per_second` and `num_input_tokens_seen` are made from."""
        tokens = self.num_tokens(inputs)
        self._tokens += tokens
        self._tokens_to_add += tokens

    def _tokens_seen(self) -> int:
        """Tokens trained on by all processes since step 1; checkpoints keep the number. Asked for by all at once."""
        tokens = torch.tensor(self._tokens_to_add, device=self.accelerator.device)
        self.state.num_input_tokens_seen += int(cast("torch.Tensor", self.accelerator.reduce(tokens, "sum")))
        self._tokens_to_add = 0
        return self.state.num_input_tokens_seen

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # counts tokens by a rule of thumb that a rollout's teacher makes wrong; tokens/s says more

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_runtime" in logs:
            return  # transformers' closing summary; `Tag.END` has ours
        for name in [name for name in logs if name.endswith(CLOCK_METRICS)]:
            del logs[name]
        is_training = "loss" in logs
        if is_training:
            now = time.perf_counter()
            self.metrics.add("tokens_per_second", self._tokens * self.accelerator.num_processes, now - self._last_log)
            self._tokens, self._last_log = 0, now
            logs |= self.metrics.pop_means(self.accelerator)
            logs["num_input_tokens_seen"] = self._tokens_seen()
        super().log(logs, start_time)
        if self.is_world_process_zero():
            self.events.write(self.state.global_step, Tag.TRAIN if is_training else Tag.EVAL, logs)

    def warn(self, message: str) -> None:
        """Say it in the log and in the events; training goes on."""
        logger.warning(message)
        if self.is_world_process_zero():
            self.events.write(self.state.global_step, Tag.WARNING, {"message": message})

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        self._tokens_seen()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # every rank writes its random state
            if self.is_world_process_zero():
                self.save_extra_state(folder)
                mark_complete(folder)
        except Exception as error:  # torch, safetensors and tokenizers each report a full disk as an error of their own
            shutil.rmtree(folder, ignore_errors=True)
            raise OutputError(
                f"{folder}: the checkpoint could not be written ({error}); free space there, "
                "then continue the run with --resume"
            ) from error
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            self.events.write(self.state.global_step, Tag.CHECKPOINT, {"folder": folder.name})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.load_extra_state(Path(resume_from_checkpoint))
