"""What may be wrapped around a model, taken off. Not here: putting it on (`loading.py`, `transformers`)."""

from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule


def unwrapped(model: nn.Module) -> Any:
    """The Hugging Face model inside data parallelism and PEFT."""
    inner: Any = getattr(model, "module", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def is_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` holds parts of the model: they have their values inside a forward pass of the whole only."""
    return any(isinstance(module, FSDPModule) for module in model.modules())
