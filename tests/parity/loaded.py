"""Models for comparisons with TRL: an adapter that is not 0, so that all of it has a gradient."""

from typing import Any

import torch

from tutelage.config import TrainingConfig
from tutelage.models import LoadedModel, load_model
from tutelage.training.inputs import prepare_inputs


def inputs_and_model(config: TrainingConfig) -> tuple[Any, LoadedModel]:
    """What a trainer is built from."""
    inputs = prepare_inputs(config)
    loaded = load_model(config, inputs.source)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return inputs, loaded
