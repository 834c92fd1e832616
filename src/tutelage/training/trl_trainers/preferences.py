"""dpo and orpo: TRL's trainers on rows that are token ids already."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import Sampler
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from tutelage.config import TrainingConfig
from tutelage.data.rows import IGNORE_INDEX, PreferenceRow
from tutelage.events import EventLog
from tutelage.models import LoadedModel
from tutelage.training.arguments import build_arguments
from tutelage.training.inputs import TrainingInputs
from tutelage.training.order import EpochSampler
from tutelage.training.trl_trainers.shared import TrlTrainer

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*trl.experimental.*")
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer


class PreferenceTrainer(TrlTrainer):
    """What dpo and orpo share: rows that are token ids already, in an order of seed and epoch alone.

    TRL averages over the rows of a batch and then over batches, so that the rows of a short last one would count for
    more: here every row of a step, and of what a metric is averaged over, counts the same.
    """

    arguments_class: type[Any]
    metrics_by_batch: str
    """The attribute in which TRL collects, by "train" and "eval" and by name, a mean a batch."""

    sequences_a_row = 1
    """How many sequences of a row stand under one name in a batch."""

    def __init__(self, **arguments: Any) -> None:
        self._rows_of_batches: dict[str, list[float]] = {"train": [], "eval": []}
        self._mean_rows = 1.0
        super().__init__(**arguments)

    @classmethod
    def build(
        cls, config: TrainingConfig, inputs: TrainingInputs, loaded: LoadedModel, run: Path, events: EventLog
    ) -> "PreferenceTrainer":
        arguments = build_arguments(
            cls.arguments_class,
            config,
            run,
            inputs.eval_rows is not None,
            beta=config.beta,
            max_length=config.max_seq_length,  # rows that are longer were found before: nothing is cut
            gradient_checkpointing=None,  # the loader switches it on, with the arguments this project wants
        )
        return cls.accepted(
            config,
            inputs,
            loaded,
            events,
            args=arguments,
            train_dataset=_as_dataset(inputs.train_items),
            eval_dataset=None if inputs.eval_rows is None else _as_dataset(inputs.eval_rows),
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return EpochSampler(len(train_dataset or self.train_dataset), self.config.seed)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        rows: Any = torch.tensor(float(sum(map(self._num_rows, batches))), device=device)
        total: Any = self.accelerator.reduce(rows, reduction="sum")
        self._mean_rows = float(total) / (max(1, len(batches)) * self.accelerator.num_processes)
        return batches, count

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Summed over micro-batches and processes as `transformers` does it, this is the mean over all rows."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if not model.training:
            return loss
        self._count_rows("train", inputs)
        return loss * (self._num_rows(inputs) / self._mean_rows)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self._count_rows("eval", inputs)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if "loss" in logs else "eval"
        weights, collected = self._rows_of_batches[mode], getattr(self, self.metrics_by_batch)[mode]
        for name, values in collected.items():
            if len(values) == len(weights):
                pairs = zip(values, weights, strict=True)
                collected[name] = [sum(float(value) * weight for value, weight in pairs) / sum(weights)]
        weights.clear()
        super().log(logs, start_time)

    def _num_rows(self, inputs: Any) -> int:
        return inputs[self.token_masks[0]].shape[0] // self.sequences_a_row

    def gathered(self, values_N: Tensor) -> Any:
        """Of all processes, as TRL gathers what it takes the mean of."""
        return self.accelerator.gather(values_N)

    def _count_rows(self, mode: str, inputs: Any) -> None:
        ones = torch.ones(self._num_rows(inputs), device=self.accelerator.device)
        self._rows_of_batches[mode].append(float(self.gathered(ones).sum()))


class DpoTrainer(PreferenceTrainer, DPOTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Direct preference optimisation."""

    arguments_class = DPOConfig
    metrics_by_batch = "_metrics"
    sequences_a_row = 2

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The rows as they are: `prompt_ids`, `chosen_ids`, `rejected_ids`."""
        return dataset


class OrpoTrainer(PreferenceTrainer, ORPOTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Odds ratio preference optimisation. TRL forms all its logits, [2·batch, sequence, vocabulary]."""

    arguments_class = ORPOConfig
    metrics_by_batch = "_stored_metrics"
    token_masks = ("chosen_attention_mask", "rejected_attention_mask")

    def __init__(self, **arguments: Any) -> None:
        shown = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            super().__init__(**arguments)
        finally:
            if shown:
                datasets.enable_progress_bars()

    def gathered(self, values_N: Tensor) -> Any:
        return self.accelerator.gather_for_metrics(values_N)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """In the last step of an epoch TRL's way to gather would cut each batch to the size of the last one."""
        accelerator: Any = self.accelerator
        accelerator.gather_for_metrics = accelerator.gather
        try:
            return super().compute_loss(*args, **kwargs)
        finally:
            del accelerator.gather_for_metrics

    def tokenize_row(self, feature: Any, model: Any = None) -> dict[str, list[int]]:
        """The row's ids under the names TRL's collator reads."""
        prompt = feature["prompt_ids"]
        batch = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for name in ("chosen", "rejected"):
            answer = feature[f"{name}_ids"]
            batch |= {
                f"{name}_input_ids": prompt + answer,
                f"{name}_attention_mask": [1] * len(prompt + answer),
                f"{name}_labels": [IGNORE_INDEX] * len(prompt) + answer,
            }
        return batch


def _as_dataset(rows: Sequence[PreferenceRow]) -> Any:
    return datasets.Dataset.from_list(
        [
            {"prompt": "", "prompt_ids": row.prompt_ids, "chosen_ids": row.chosen_ids, "rejected_ids": row.rejected_ids}
            for row in rows
        ]
    )
