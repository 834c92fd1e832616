"""Plugins that the tests list beside ours: what a user's other plugins might do, and what a test has to measure.

Imported by Axolotl's environment, not by pytest's.
"""

import json
import os
import resource
from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin
from transformers import Trainer, TrainerCallback


class OnCpu(BasePlugin):
    """Axolotl puts each process of several on a GPU of its number, and wants one for bfloat16; there is none."""

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        cfg["device_map"] = {"": "cpu"}

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        return {"use_cpu": True}


class MaskRows(BasePlugin):
    """Rows without anything to train, by their places from the shortest on, in MASK_ROWS. Axolotl itself drops such
    rows beforehand, and shuffles the others."""

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        lengths = sorted(len(ids) for ids in trainer.train_dataset["input_ids"])
        masked = {lengths[int(place)] for place in os.environ["MASK_ROWS"].split(",")}

        def mask(row: dict[str, Any]) -> dict[str, Any]:
            return {"labels": [-100] * len(row["labels"]) if len(row["labels"]) in masked else row["labels"]}

        trainer.train_dataset = trainer.train_dataset.map(mask)


class MeasureMemory(BasePlugin):
    """Writes peak.json: resident memory at the first step's start, and its peak by the end, in MiB."""

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        class Measure(TrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
                self.before = pages * os.sysconf("SC_PAGE_SIZE") / 2**20

            def on_train_end(self, *args: Any, **kwargs: Any) -> None:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
                values = {"before": self.before, "peak": peak}
                Path(cfg["output_dir"], "peak.json").write_text(json.dumps(values), encoding="utf-8")

        return [Measure()]


class AnotherLoss(BasePlugin):
    """Sets a loss function of its own."""

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        trainer.compute_loss_func = loss_of_another_plugin


def loss_of_another_plugin(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    return outputs.logits.sum()


class SmoothLabels(BasePlugin):
    """Brings label smoothing by the back door: Axolotl has no key for it."""

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        return {"label_smoothing_factor": 0.2}


class OwnLoss(BasePlugin):
    """Brings a trainer that computes its own loss, as Axolotl's knowledge distillation does."""

    def get_trainer_cls(self, cfg: Any) -> type[Trainer]:
        from axolotl.core.trainers.base import AxolotlTrainer

        class OwnLossTrainer(AxolotlTrainer):
            def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                return model(**inputs).loss

        return OwnLossTrainer
