"""Small numbers are 0 while a run trains, and numbers again afterwards."""

import sys

import pytest
import torch

from tutelage.training.denormals import denormals_flushed


def half_of_the_smallest() -> tuple[float, float]:
    """Of Python's smallest normal number, and of torch's in float32: both are denormal."""
    return sys.float_info.min / 2, (torch.tensor([torch.finfo(torch.float32).tiny]) / 2).item()


@pytest.mark.parametrize("fails", [False, True])
def test_the_switch_is_put_back(fails: bool) -> None:
    before = half_of_the_smallest()
    assert min(before) > 0
    try:
        with denormals_flushed():
            assert half_of_the_smallest() == (0, 0)
            with denormals_flushed():
                pass
            assert half_of_the_smallest() == (0, 0)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert half_of_the_smallest() == before
