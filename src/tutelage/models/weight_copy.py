"""A second set of values for a model's trainable tensors, put in place for as long as it is needed.

The base model of the KL, and the teacher of sdft (`rollouts.teacher`), are such copies: under LoRA a few
megabytes, never a second model, never a parameter, so neither optimizer nor export can see them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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

        Values are written in place, into the storage the parameters have: wrappers that hold on to that storage
        (data-parallel buckets, sharded parameters) see them too. Only for blocks without gradients: a graph built
        before the block would meet other values in its backward pass.
        """
        parameters = trainable_parameters(model)
        own = {name: parameters[name].detach().clone() for name in self.tensors}
        try:
            self._write(parameters, self.tensors)
            yield
        finally:
            self._write(parameters, own)

    def distance(self, model: nn.Module) -> float:
        """Frobenius norm of (model − copy) over all tensors, summed in float64."""
        parameters = trainable_parameters(model)
        squares = [
            (parameters[name].detach().to(value.device).double() - value.double()).square().sum().cpu()
            for name, value in self.tensors.items()
        ]
        return float(torch.stack(squares).sum().sqrt()) if squares else 0.0

    @staticmethod
    def _write(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                parameters[name].data.copy_(value)
