"""A process that ends has left its group."""

from pathlib import Path

import pytest
import torch.distributed

from tutelage.errors import TrainingError
from tutelage.training.processes import process_group_left


def join_group(folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)


def test_the_group_is_left(tmp_path: Path) -> None:
    with process_group_left():
        join_group(tmp_path)
    assert not torch.distributed.is_initialized()


def test_the_group_is_left_after_an_error_too(tmp_path: Path) -> None:
    def fail() -> None:
        with process_group_left():
            join_group(tmp_path)
            raise TrainingError("why")

    with pytest.raises(TrainingError, match="why"):
        fail()
    assert not torch.distributed.is_initialized()


def test_without_a_group_nothing_happens() -> None:
    with process_group_left():
        pass
    assert not torch.distributed.is_initialized()
