"""dpo and orpo: TRL's trainers on rows that are token ids already."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
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
    """What dpo and orpo share: rows that are token ids already, in an order of seed and epoch alone."""

    arguments_class: type[Any]

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


class DpoTrainer(PreferenceTrainer, DPOTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Direct preference optimisation."""

    arguments_class = DPOConfig

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The rows as they are: `prompt_ids`, `chosen_ids`, `rejected_ids`."""
        return dataset


class OrpoTrainer(PreferenceTrainer, ORPOTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Odds ratio preference optimisation. TRL forms all its logits, [2·batch, sequence, vocabulary]."""

    arguments_class = ORPOConfig
    token_masks = ("chosen_attention_mask", "rejected_attention_mask")

    def __init__(self, **arguments: Any) -> None:
        shown = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            super().__init__(**arguments)
        finally:
            if shown:
                datasets.enable_progress_bars()

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
