"""Other values in a model's trainable tensors, and the model's own ones back afterwards."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tutelage.models import WeightCopy


def two_layers() -> nn.Sequential:
    """Weights [[1, 2]] and [[3]], of which the second is frozen."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0]]))
        model[1].weight.copy_(torch.tensor([[3.0]]))
    model[1].weight.requires_grad_(False)
    return model


def outcome(model: nn.Module) -> float:
    with torch.no_grad():
        return model(torch.tensor([1.0, 10.0])).item()


@pytest.mark.parametrize("fails", [False, True])
def test_values_of_the_same_form_are_pointed_to(fails: bool) -> None:
    """(1·1 + 2·10)·3 = 63, with [[4, 5]] in place (4 + 50)·3 = 162; nothing is moved, also when the block raises."""
    model = two_layers()
    weight = model[0].weight
    had = weight.data_ptr()
    copy = WeightCopy({"0.weight": torch.tensor([[4.0, 5.0]])})
    assert outcome(model) == 63
    with contextlib.suppress(ZeroDivisionError), copy.applied(model):
        assert outcome(model) == 162
        assert model[0].weight is weight
        assert weight.data_ptr() == copy.tensors["0.weight"].data_ptr()
        if fails:
            raise ZeroDivisionError
    assert outcome(model) == 63
    assert weight.data_ptr() == had
    assert copy.tensors["0.weight"].tolist() == [[4, 5]]


def test_values_of_another_type_are_written_into_the_storage_there_is() -> None:
    model = two_layers()
    weight = model[0].weight
    had = weight.data_ptr()
    copy = WeightCopy({"0.weight": torch.tensor([[4.0, 5.0]], dtype=torch.float64)})
    with copy.applied(model):
        assert outcome(model) == 162
        assert (weight.data_ptr(), weight.dtype) == (had, torch.float32)
    assert outcome(model) == 63
    assert weight.data_ptr() == had


def test_a_graph_from_before_keeps_the_values_it_was_built_with() -> None:
    """∂(w·x·3)/∂x = 3·[1, 2] whatever was in place since."""
    model = two_layers()
    x = torch.tensor([1.0, 10.0], requires_grad=True)
    loss = model(x).sum()
    with WeightCopy({"0.weight": torch.tensor([[4.0, 5.0]])}).applied(model):
        pass
    loss.backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3, 6]


def test_distance_is_the_frobenius_norm_over_all_tensors() -> None:
    """Differences 3, 4 and 12: √(9 + 16 + 144) = 13."""
    model = two_layers().requires_grad_(True)
    copy = WeightCopy({"0.weight": torch.tensor([[4.0, 6.0]]), "1.weight": torch.tensor([[15.0]])})
    assert math.isclose(copy.distance(model), 13, rel_tol=1e-15)


def test_a_part_of_a_larger_tensor_is_written_not_pointed() -> None:
    """As FSDP and DeepSpeed hold parameters: the wrapper's flat tensor has to have the values too."""
    model = two_layers()
    flat = torch.tensor([7.0, 1.0, 2.0])
    model[0].weight.data = flat[1:].view(1, 2)
    with WeightCopy({"0.weight": torch.tensor([[4.0, 5.0]])}).applied(model):
        assert flat.tolist() == [7, 4, 5]
        assert outcome(model) == 162
    assert flat.tolist() == [7, 1, 2]


def test_what_fsdp_has_flattened_is_written_also_from_inside_the_wrapper() -> None:
    """A flat tensor of one parameter is not larger than it; FSDP's mark on it is all there is to see."""
    model = two_layers()
    weight, had = model[0].weight, model[0].weight.data_ptr()
    weight._fsdp_flattened = True
    with WeightCopy({"0.weight": torch.tensor([[4.0, 5.0]])}).applied(model):
        assert weight.data_ptr() == had
        assert outcome(model) == 162
    assert outcome(model) == 63


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_shards_are_written() -> None:
    """FSDP's second form, whose parameters are DTensors."""
    model = two_layers()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    weight = model[0].weight
    assert isinstance(weight.data, DTensor)
    assert outcome(model) == 63
    model.reshard()  # the forward pass before has kept what it gathered
    copy = WeightCopy.of(model)
    with torch.no_grad():
        weight.mul_(2)
    assert outcome(model) == 126
    with copy.applied(model):
        assert outcome(model) == 63
    assert outcome(model) == 126
