"""Using a model in the middle of its training without leaving a trace."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def inference_mode_of(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is back afterwards, also after an exception.

    Gradient checkpointing and its arguments stay as they are: it acts in training mode only. `use_cache` is an
    argument of the calls made inside, so the config is not touched either.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
