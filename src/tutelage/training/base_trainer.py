"""What all trainers share: normalising by the optimizer step, metrics, evaluation, complete checkpoints.

Not here: an objective's loss (`token_trainer.py`, `sdft_trainer.py`), building a trainer (`build.py`).
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer

from tutelage.config import TrainingConfig
from tutelage.data.rows import IGNORE_INDEX
from tutelage.errors import OutputError, TrainingError
from tutelage.events import EventLog, Tag
from tutelage.losses import TokenStats, token_objective
from tutelage.models import Layout, head_forward, inference_mode_of, lay_out
from tutelage.training.checkpoints import mark_complete
from tutelage.training.metrics import MetricSums
from tutelage.training.shares import FilledRows

logger = logging.getLogger(__name__)


class EpochSampler(Sampler[int]):
    """A new order of the rows each epoch, a function of seed and epoch alone, so that resuming finds it again.

    The last `num_blank` indices, those of blank rows, stay last.
    """

    def __init__(self, num_rows: int, seed: int, num_blank: int = 0) -> None:
        self._num_rows = num_rows
        self._num_blank = num_blank
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num_rows + self._num_blank

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(self._num_rows, generator=generator).tolist()
        return iter([*order, *range(self._num_rows, len(self))])


class BaseTrainer(Trainer):
    """A `transformers.Trainer` whose loss is Σ over the step's valid tokens / their number in the whole step.

    The whole step means all micro-batches of gradient accumulation on all ranks: `prepare_step` counts.
    """

    # `transformers` declares both as optional; a run always has them.
    model: Any
    processing_class: Any
    train_dataset: Any
    eval_dataset: Any

    def __init__(
        self, config: TrainingConfig, events: EventLog, eval_collate: Callable[..., dict[str, Any]], **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        if self.args.world_size > 1:
            self.train_dataset = FilledRows(self.train_dataset, self.args.world_size * self.args.train_batch_size)
        self.config = config
        self.eval_collate = eval_collate
        self.events = events
        # Loss and gradient are normalised over the accumulated step already: no division by the micro-batches.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.metrics = MetricSums()
        self._tokens = 0
        self._last_log = time.perf_counter()

    # --- what an objective adds ---------------------------------------------------------------------------------

    def prepare_step(self, batches: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
        """The batches of one optimizer step, made ready, and the number this rank's loss sum is divided by."""
        return batches, sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)

    def loss_sum(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Σ of the loss over the valid positions of one micro-batch; records what it measures on the way."""
        raise TypeError(f"{type(self).__name__} has no loss")

    def num_tokens(self, inputs: Mapping[str, Any]) -> int:
        """Tokens of the sequences of one micro-batch, padding left out."""
        return int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else inputs["input_ids"].numel()

    def save_extra_state(self, folder: Path) -> None:
        """State of the objective that a checkpoint needs besides what `transformers` saves."""

    def load_extra_state(self, folder: Path) -> None:
        """The reverse of `save_extra_state`."""

    # --- the optimizer step -------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows = train_dataset or self.train_dataset
        num_rows = rows.num_rows if isinstance(rows, FilledRows) else len(rows)
        return EpochSampler(num_rows, self.config.seed, num_blank=len(rows) - num_rows)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        batches, count = self.prepare_step(batches)
        total: Any = self.accelerator.reduce(torch.tensor(float(count), device=device), reduction="sum")
        if not float(total) > 0:
            places = ", ".join(place for batch in batches for place in batch["places"])
            raise TrainingError(
                f"step {self.state.global_step + 1}: no token of {places} is trained; "
                "check 'train', 'weight' and sdft_skip_tokens for these rows"
            )
        return batches, total

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        if num_items_in_batch is None or return_outputs:
            raise TypeError("losses are computed within an optimizer step; evaluation has its own loop")
        self._tokens += self.num_tokens(inputs)
        # Gradients are averaged over ranks, so each rank's share counts `num_processes` times.
        return self.loss_sum(model, inputs) * self.accelerator.num_processes / num_items_in_batch

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # counts tokens by a rule of thumb that a rollout's teacher makes wrong; tokens/s says more

    # --- metrics ------------------------------------------------------------------------------------------------

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

    # --- evaluation ---------------------------------------------------------------------------------------------

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

    # --- checkpoints --------------------------------------------------------------------------------------------

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


def token_loss_sum(model: Any, inputs: Mapping[str, Any], objective: Any) -> tuple[Tensor, TokenStats]:
    """Σ weight · loss over the valid positions of a padded or packed batch, through the chunked head.

    inputs: `input_ids` [B, T], `labels` [B, T] (unshifted, −100 ignored), `weights` [B, T] (of the token itself).
    """
    layout, keep_BT = _laid_out(model, inputs)
    place_L, labels_L, weights_L = layout.all_places, inputs["labels"][keep_BT], inputs["weights"][keep_BT]
    lengths = torch.tensor([len(place) for place in layout.places], device=labels_L.device)
    labels_L[lengths.cumsum(0) - lengths] = IGNORE_INDEX  # nothing predicts the first token of a sequence
    trained_L = labels_L[1:] != IGNORE_INDEX

    def through_head(hidden_BTD: Tensor, head: Any) -> tuple[Tensor, TokenStats]:
        hidden_ND = hidden_BTD.flatten(0, 1)[place_L[:-1][trained_L]]
        result = token_objective(hidden_ND, head, labels_L[1:][trained_L], weights_L[1:][trained_L], objective)
        return result.loss_sum, result.stats

    return head_forward(model, layout.inputs, through_head)


def _laid_out(model: Any, inputs: Mapping[str, Any]) -> tuple[Layout, Tensor]:
    """The sequences of a batch, and the mask [B, T] of their tokens."""
    ids_BT = inputs["input_ids"]
    if "attention_mask" in inputs:
        keep_BT = inputs["attention_mask"].bool()
        return lay_out(model, [ids_T[keep_T].tolist() for ids_T, keep_T in zip(ids_BT, keep_BT, strict=True)]), keep_BT
    starts = (inputs["position_ids"][0] == 0).nonzero()[1:, 0].tolist()
    places = list(torch.arange(ids_BT.shape[1], device=ids_BT.device).tensor_split(starts))
    packed = Layout({"input_ids": ids_BT, "position_ids": inputs["position_ids"]}, places)
    keep_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    return lay_out(model, [ids_BT[0, place].tolist() for place in places], otherwise=packed), keep_BT
