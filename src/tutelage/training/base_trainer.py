"""Our own trainers' optimizer step: the loss is normalised over the whole step.

Not here: an objective's loss (`token_trainer.py`, `sdft_trainer.py`), what TRL's trainers share (`run_trainer.py`).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from tutelage.config import TrainingConfig
from tutelage.errors import TrainingError
from tutelage.events import EventLog
from tutelage.models import LoadedModel
from tutelage.training.arguments import training_arguments
from tutelage.training.gold_evaluation import GoldAnswerTrainer
from tutelage.training.inputs import TrainingInputs
from tutelage.training.order import EpochSampler
from tutelage.training.shares import FilledRows


class BaseTrainer(GoldAnswerTrainer):
    """A trainer whose loss is Σ over the step's valid tokens / their number in the whole step.

    The whole step means all micro-batches of gradient accumulation on all ranks: `prepare_step` counts.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self.args.world_size > 1:
            self.train_dataset = FilledRows(self.train_dataset, self.args.world_size * self.args.train_batch_size)
        # Loss and gradient are normalised over the accumulated step already: no division by the micro-batches.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    @classmethod
    def build(
        cls, config: TrainingConfig, inputs: TrainingInputs, loaded: LoadedModel, run: Path, events: EventLog
    ) -> "BaseTrainer":
        return cls(
            config=config,
            events=events,
            model=loaded.model,
            args=training_arguments(config, run, has_test_file=inputs.eval_rows is not None),
            train_dataset=inputs.train_items,
            eval_dataset=inputs.eval_rows,
            data_collator=inputs.collate,
            eval_collate=inputs.collate_eval,
            processing_class=inputs.tokenizer,
            **cls.own_arguments(inputs, run),
        )

    # --- what an objective adds ---------------------------------------------------------------------------------

    @classmethod
    def own_arguments(cls, inputs: TrainingInputs, run: Path) -> dict[str, Any]:
        """Arguments of the objective's own constructor."""
        return {}

    def prepare_step(self, batches: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
        """The batches of one optimizer step, made ready, and the number this rank's loss sum is divided by."""
        return batches, sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)

    def loss_sum(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Σ of the loss over the valid positions of one micro-batch; records what it measures on the way."""
        raise TypeError(f"{type(self).__name__} has no loss")

    # --- the optimizer step ---------------------------------------------------------------------------------------

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
        self.count_tokens(inputs)
        # Gradients are averaged over ranks, so each rank's share counts `num_processes` times.
        return self.loss_sum(model, inputs) * self.accelerator.num_processes / num_items_in_batch
