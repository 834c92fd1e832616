"""What may be wrapped around a model, taken off. Not here: putting it on (`loading.py`, `transformers`)."""

from typing import Any

from torch import nn


def unwrapped(model: nn.Module) -> Any:
    """The Hugging Face model inside data parallelism and PEFT."""
    inner: Any = getattr(model, "module", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner
