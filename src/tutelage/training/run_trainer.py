"""What every trainer of a run shares, ours and TRL's: metrics, events, evaluation, complete checkpoints.

Not here: how a step's loss is normalised (`base_trainer.py`, `trl_trainers.py`), building a trainer (`build.py`).
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from tutelage.config import TrainingConfig
from tutelage.errors import OutputError
from tutelage.events import EventLog, Tag
from tutelage.losses import TokenStats
from tutelage.models import inference_mode_of
from tutelage.training.checkpoints import mark_complete
from tutelage.training.metrics import MetricSums
from tutelage.training.shares import FilledRows
from tutelage.training.token_loss import token_loss_sum

if TYPE_CHECKING:
    from tutelage.models import LoadedModel
    from tutelage.training.inputs import TrainingInputs

logger = logging.getLogger(__name__)


class RunTrainer(Trainer):
    """A `transformers.Trainer` that writes a run's events and checkpoints. Stands before TRL's trainers as well."""

    # `transformers` declares both as optional; a run always has them.
    model: Any
    processing_class: Any
    train_dataset: Any
    eval_dataset: Any

    def __init__(
        self, config: TrainingConfig, events: EventLog, eval_collate: Callable[..., dict[str, Any]], **arguments: Any
    ) -> None:
        self.config = config
        self.events = events
        self.eval_collate = eval_collate
        self.metrics = MetricSums()
        super().__init__(**arguments)
        self._tokens = 0
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
        """Tokens of the sequences of one micro-batch, padding left out."""
        return int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else inputs["input_ids"].numel()

    def save_extra_state(self, folder: Path) -> None:
        """State of the objective that a checkpoint needs besides what `transformers` saves."""

    def load_extra_state(self, folder: Path) -> None:
        """The reverse of `save_extra_state`."""

    # --- metrics --------------------------------------------------------------------------------------------------

    def count_tokens(self, inputs: Mapping[str, Any]) -> None:
        """Add a micro-batch to what `tokens_per_second` is made from."""
        self._tokens += self.num_tokens(inputs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # counts tokens by a rule of thumb that a rollout's teacher makes wrong; tokens/s says more

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_runtime" in logs:
            return  # transformers' closing summary; `Tag.END` has ours
        is_training = "loss" in logs
        if is_training:
            now = time.perf_counter()
            self.metrics.add("tokens_per_second", self._tokens * self.accelerator.num_processes, now - self._last_log)
            self._tokens, self._last_log = 0, now
            logs |= self.metrics.pop_means(self.accelerator)
        super().log(logs, start_time)
        if self.is_world_process_zero():
            self.events.write(self.state.global_step, Tag.TRAIN if is_training else Tag.EVAL, logs)

    def warn(self, message: str) -> None:
        """Say it in the log and in the events; training goes on."""
        logger.warning(message)
        if self.is_world_process_zero():
            self.events.write(self.state.global_step, Tag.WARNING, {"message": message})

    def token_loss_sum(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, TokenStats]:
        """Σ of the token loss on given answers: dft's own for dft, else the NLL."""
        return token_loss_sum(model, inputs, "dft" if self.config.loss == "dft" else "nll")

    def record_tokens(self, stats: TokenStats, prefix: str = "") -> None:
        """Add NLL, mean probability and accuracy of these positions to the metrics."""
        count = stats.nll.numel()
        self.metrics.add(f"{prefix}nll", stats.nll.sum(), count)
        self.metrics.add(f"{prefix}mean_token_probability", stats.probability.sum(), count)
        self.metrics.add(f"{prefix}token_accuracy", stats.correct.sum(), count)

    # --- evaluation -----------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        rows = eval_dataset or self.eval_dataset
        if self.args.world_size > 1:
            rows = FilledRows(rows, self.args.world_size * self.args.eval_batch_size)
        loader: DataLoader[Any] = DataLoader(rows, batch_size=self.args.eval_batch_size, collate_fn=self.eval_collate)
        return self.accelerator.prepare_data_loader(loader)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Token means over the whole test file: not a mean of batch means. `eval_loss` is the objective's loss on
        the gold answers (cross-entropy for sdft, whose own loss needs rollouts); `eval_nll` compares objectives."""
        metrics = MetricSums()
        with inference_mode_of(self.model):
            for batch in self.get_eval_dataloader(eval_dataset):
                batch = self._prepare_inputs(batch)
                loss_sum, stats = self.token_loss_sum(self.model, batch)
                count = stats.nll.numel()
                metrics.add(f"{metric_key_prefix}_loss", loss_sum, count)
                metrics.add(f"{metric_key_prefix}_nll", stats.nll.sum(), count)
                metrics.add(f"{metric_key_prefix}_mean_token_probability", stats.probability.sum(), count)
                metrics.add(f"{metric_key_prefix}_token_accuracy", stats.correct.sum(), count)
        means = metrics.pop_means(self.accelerator)
        self.log(means)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, means)
        return means

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
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
