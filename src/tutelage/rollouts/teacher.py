"""The teacher of sdft: the student's own architecture with other values in its trainable tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tutelage.config import SdftConfig
from tutelage.errors import ResumeError
from tutelage.models.weight_copy import WeightCopy, trainable_parameters


class Teacher:
    """φ of the self-distillation loss; φ ← α·θ + (1−α)·φ every `teacher_sync_steps` optimizer steps.

    φ is kept in float32 (float64 for float64 models) whatever the model's type: in bfloat16 an update of 1 %
    rounds to nothing. It starts as a copy of θ, so an adapter that came trained is its own first teacher.
    `base` never moves; `live` has no tensors, it is the student.
    """

    def __init__(self, model: nn.Module, config: SdftConfig) -> None:
        self._config = config
        device = "cpu" if config.teacher_device == "cpu" else None
        parameters = {} if config.teacher == "live" else trainable_parameters(model)
        self._copy = WeightCopy(
            {
                name: parameter.detach().to(device=device, dtype=_wide(parameter.dtype), copy=True)
                for name, parameter in parameters.items()
            }
        )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """φ by name; empty for a live teacher."""
        return self._copy.tensors

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        """Move φ towards θ after optimizer step `step` (counted from 1), where this step is one that syncs."""
        if self._config.teacher != "ema" or step % self._config.teacher_sync_steps:
            return
        alpha = self._config.ema_alpha
        parameters = trainable_parameters(model)
        alike: tuple[list[Tensor], list[Tensor]] = [], []
        for name, teacher in self.tensors.items():
            student = parameters[name].detach()
            if (student.dtype, student.device) == (teacher.dtype, teacher.device):
                alike[0].append(teacher)
                alike[1].append(student)
            else:  # one at a time: a copy of all of them would be a model
                teacher.lerp_(student.to(teacher), alpha)
        if alike[0]:
            # All in one call: an adapter has hundreds of small tensors. At α = 1 the result is the student's bits.
            torch._foreach_lerp_(*alike, alpha)  # pyright: ignore[reportPrivateImportUsage]  # torch has no public name for it

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model is the teacher inside the block. See `WeightCopy.applied`."""
        with self._copy.applied(model):
            yield

    def distance(self, model: nn.Module) -> float:
        """‖θ − φ‖ in Frobenius norm; 0 for a live teacher."""
        return self._copy.distance(model)

    def save(self, path: Path) -> None:
        """Write φ as safetensors."""
        save_file({name: tensor.contiguous().cpu() for name, tensor in self.tensors.items()}, path)

    def load(self, path: Path) -> None:
        """Read φ back, bit for bit. Raises ResumeError where names or shapes are not those of this model."""
        if not path.exists():
            raise ResumeError(f"{path}: the checkpoint holds no teacher; resume a run that was trained with sdft")
        stored = load_file(path)
        if {name: value.shape for name, value in stored.items()} != {
            name: value.shape for name, value in self.tensors.items()
        }:
            raise ResumeError(f"{path}: the teacher's tensors are not this model's; resume with the run's own config")
        for name, value in stored.items():
            self.tensors[name].copy_(value)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
