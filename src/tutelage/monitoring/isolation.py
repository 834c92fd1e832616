"""Measuring in the middle of training without changing it: random states and the model's modes are put back.

Not here: what is measured.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from tutelage.models import inference_mode_of


@contextmanager
def random_states_kept() -> Iterator[None]:
    """The random states of Python, NumPy, torch and every GPU in use are the same after the block as before it."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    torch_state = torch.get_rng_state()
    gpu_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if gpu_states:
            torch.cuda.set_rng_state_all(gpu_states)


@contextmanager
def leaving_no_trace(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, and everything random and modal as before afterwards, also after an exception."""
    with random_states_kept(), inference_mode_of(model):
        yield
