"""The processes of one run: leaving their group. Not here: sharing rows among them (`shares.py`)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed


@contextmanager
def process_group_left() -> Iterator[None]:
    """Leave the group that a run under `torchrun` joined, however the run ended; alone, nothing.

    For a process that ends next: gloo and NCCL have threads, and a Python that ends while they run aborts now and then.
    """
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
