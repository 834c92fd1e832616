"""Whether calling a module would do what its class says and no more, so that a shorter way may stand for the call.

Not here: what the shorter ways are (`adapted_linear.py`, `gated_mlp.py`).
"""

from torch import nn
from torch.nn.modules import module as modules


def has_hooks(module: nn.Module) -> bool:
    """Of its own or for all modules."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks) or bool(modules._has_any_global_hook())


def is_only_its_class(module: nn.Module) -> bool:
    """No hooks and no forward of its own. To be asked at each call: it is cheap."""
    return not has_hooks(module) and "forward" not in module.__dict__
