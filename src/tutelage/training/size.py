"""How much a run does: rows, what a step takes of them, steps, and how often that goes over the rows."""

import math
from dataclasses import dataclass

from tutelage.config import GrpoConfig, TrainingConfig
from tutelage.data.packing import Packs
from tutelage.training.inputs import TrainingInputs


@dataclass(frozen=True)
class RunSize:
    """rows: after those that were left out. units: packs where rows share sequences, else rows or prompts. per_step:
    units of an optimizer step of one process, fewer in the last one of an epoch. answers: sampled answers of a step,
    where a reward scores them."""

    rows: int
    units: int
    per_step: int
    steps_per_epoch: int
    steps: int
    answers: int | None

    @property
    def passes(self) -> float:
        """How often the run goes over its rows."""
        epochs, more = divmod(self.steps, self.steps_per_epoch)
        return epochs * self._share(self.steps_per_epoch) + self._share(more)

    def _share(self, steps: int) -> float:
        """Of the rows, that so many steps from the beginning of an epoch take."""
        return min(steps * self.per_step, self.units) / self.units

    @property
    def is_packed(self) -> bool:
        return self.units < self.rows


def size_of(config: TrainingConfig, inputs: TrainingInputs) -> RunSize:
    """The size of a run in one process."""
    units = len(inputs.train_items)
    per_step, answers = config.per_device_train_batch_size * config.gradient_accumulation_steps, None
    # The last step of an epoch takes what is left; of answers it needs whole groups of whole steps.
    steps_per_epoch = math.ceil(units / per_step)
    if isinstance(config.objective, GrpoConfig):
        answers, per_step = per_step, per_step // config.objective.num_generations
        steps_per_epoch = max(1, units * config.objective.num_generations // answers)
    rows = inputs.train_items.num_rows if isinstance(inputs.train_items, Packs) else units
    steps = config.max_steps or math.ceil(steps_per_epoch * config.epochs)
    return RunSize(rows, units, per_step, steps_per_epoch, steps, answers)
