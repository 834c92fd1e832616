"""Which layers get an adapter: the names in `target_modules`, looked for in a model without its weights."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tutelage.config import TrainingConfig
from tutelage.errors import ModelError, nearest


def check_target_modules(config: TrainingConfig, base: str) -> None:
    """Raises ModelError where a new adapter would miss layers it is to have. base: folder or Hub id of the weights."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    except Exception:  # whatever a model's code raises: loading it says what is wrong
        return
    require_target_modules(model, config)


def require_target_modules(model: nn.Module, config: TrainingConfig) -> None:
    """PEFT takes what it finds and is silent about the rest. Raises ModelError for names that no layer has; of the
    default list, which is for many architectures, one that is there is enough. Of a mixture of experts PEFT knows the
    names that its parameters had before, so there it decides alone."""
    names = [name for name, _ in model.named_modules()]
    if any(name.endswith(".experts") for name in names):
        return
    missing = [target for target in config.target_modules if not any(_is(name, target) for name in names)]
    default = TrainingConfig.model_fields["target_modules"].default
    if not missing or (config.target_modules == default and len(missing) < len(default)):
        return
    linear = sorted({name.rpartition(".")[2] for name, layer in model.named_modules() if _is_linear(layer)})
    raise ModelError(
        f"target_modules: {', '.join(map(repr, missing))} {'is' if len(missing) == 1 else 'are'} not in "
        f"{type(model).__name__}{nearest(missing[0], linear)}; its linear layers are called {', '.join(linear)}"
    )


def _is(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _is_linear(layer: nn.Module) -> bool:
    """Conv1D, which GPT-2 has, is one by another name."""
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"
