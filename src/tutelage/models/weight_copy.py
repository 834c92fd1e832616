"""A second set of values for a model's trainable tensors, put in place for as long as it is needed.

The base model of the KL, and the teacher of sdft (`rollouts.teacher`), are such copies: under LoRA a few
megabytes, never a second model, never a parameter, so neither optimizer nor export can see them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by name, without the prefix that data-parallel wrappers add."""
    return {
        name.removeprefix("module."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


class WeightCopy:
    """Values for the trainable tensors of one model, detached from it.

    tensors: name to value. Names are those of `trainable_parameters`.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    @classmethod
    def of(cls, model: nn.Module) -> "WeightCopy":
        """A bit-exact copy of the model's present trainable tensors."""
        return cls({name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()})

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model computes with these values inside the block, and has its own bits again afterwards.

        A parameter points to the copy's tensor for the time where both are alike: nothing is moved. Otherwise (other
        type or device; sharded or flattened parameters, whose storage a wrapper holds on to, also where the model is
        what stands inside of it) the value is written into the storage the parameter has. Only for blocks without
        gradients: a graph built before the block would meet other values in its backward pass.
        """
        _reshard(model)
        parameters = trainable_parameters(model)
        pointed: dict[str, Tensor] = {}
        written: dict[str, Tensor] = {}
        try:
            for name, value in self.tensors.items():
                parameter = parameters[name]
                if _alike(parameter.data, value) and _owns_its_storage(parameter):
                    pointed[name] = parameter.data
                    parameter.data = value
                else:
                    written[name] = parameter.detach().clone()
                    parameter.data.copy_(value)
            yield
        finally:
            _reshard(model)
            for name, value in pointed.items():
                parameters[name].data = value
            for name, value in written.items():
                parameters[name].data.copy_(value)

    def distance(self, model: nn.Module) -> float:
        """Frobenius norm of (model − copy) over all tensors; the difference in the copy's type, the sum in float64."""
        parameters = trainable_parameters(model)
        squares = [
            torch.linalg.vector_norm(parameters[name].detach().to(value) - value, dtype=torch.float64).square().cpu()
            for name, value in self.tensors.items()
        ]
        return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def _reshard(model: nn.Module) -> None:
    """Drop what `fully_shard` has gathered and may keep: a forward pass would go on with the values of before."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _owns_its_storage(parameter: nn.Parameter) -> bool:
    """Not a part of a larger tensor that somebody else works with; FSDP marks its own, which may be all of one."""
    is_whole = parameter.untyped_storage().nbytes() == parameter.nbytes
    return is_whole and not getattr(parameter, "_fsdp_flattened", False)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether a parameter can hold either: plain tensors of one type, place and form."""
    return type(one) is type(other) is Tensor and all(
        getattr(one, name) == getattr(other, name) for name in ("dtype", "device", "shape")
    )
