"""Numbers too small for all their digits, counted as 0 while a run trains. Torch's own switch, put back afterwards."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Numbers below 1.2e-38 are 0 inside the block, on a CPU that can do so.

    Where student and teacher are nearly the same, gradients are full of such numbers, and a CPU multiplies matrices of
    them up to 200 times slower; as 0 they change nothing. The switch belongs to a thread: threads that torch has
    started before keep to what they had, those that it starts inside the block flush for good.
    """
    was_on = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_on)
