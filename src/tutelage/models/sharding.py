"""Models whose weights are shared out among processes (FSDP2): whether one is, and its weights made whole.

Not here: which runs may be sharded (`training/distribution.py`). Who shards is accelerate.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

Result = TypeVar("Result")


def fsdp_is_asked() -> bool:
    """Whether the launcher asks for FSDP, as `accelerate launch` does by the environment."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def is_sharded(model: nn.Module) -> bool:
    """Whether processes hold parts of the model: its weights then are whole only inside a forward pass of all of it."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def gathered_trainable(model: nn.Module) -> dict[str, Tensor]:
    """Trainable tensors of a sharded model by name, whole and on the CPU, in process 0; nothing in the others.

    To be called by all processes at once. A tied tensor has the first of its names alone.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    gathered: dict[str, Any] = get_model_state_dict(model, options=options)
    tied = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters()).keys()
    return {name: value for name, value in gathered.items() if name not in tied}


def inside_call_of(layer: nn.Module, function: Callable[[Tensor], Result], x: Tensor) -> Result:
    """`function(x)` where the weights of `layer` are whole: as its forward, so that the hooks of FSDP run around it.

    For a layer that is not sharded, the function alone.
    """
    if not isinstance(layer, FSDPModule):
        return function(x)
    whole: Any = layer
    whole.forward = function
    try:
        return whole(x)
    finally:
        del whole.forward
