"""What this project leaves out of all of TRL's trainers, counts in them, and does with their reference."""

from collections.abc import Mapping
from typing import Any

from accelerate.utils import is_peft_model

from tutelage.config import TrainingConfig
from tutelage.errors import ConfigError
from tutelage.events import EventLog
from tutelage.models import LoadedModel
from tutelage.models.loading import without_peft_deprecations
from tutelage.training.inputs import TrainingInputs
from tutelage.training.run_trainer import RunTrainer

REFERENCE = "ref"
"""What TRL calls its copy of the adapter, the reference of the KL and of dpo."""


class TrlTrainer(RunTrainer):
    """What this project leaves out of TRL's trainers, and what it counts in them."""

    args: Any
    """The arguments of TRL's own class."""
    token_masks: tuple[str, ...] = ("attention_mask",)
    """Where a batch says which of its tokens are no padding."""

    def __init__(self, **arguments: Any) -> None:
        model = arguments["model"]
        # TRL makes the adapter of a 4-bit model bfloat16, which small steps are lost in.
        four_bits = getattr(model, "is_loaded_in_4bit", False)
        adapter = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if four_bits and parameter.requires_grad
        }
        with without_peft_deprecations():
            super().__init__(**arguments)
        for name, values in adapter.items():
            model.get_parameter(name).data = values
        _settle_reference_adapter(self.model)
        reference: Any = getattr(self, "ref_model", None)
        if reference is not None:
            # TRL has read it from where the weights came from, which a merged adapter is not part of.
            weights = self.accelerator.unwrap_model(self.model).state_dict()
            self.accelerator.unwrap_model(reference).load_state_dict(weights)

    @classmethod
    def accepted(
        cls, config: TrainingConfig, inputs: TrainingInputs, loaded: LoadedModel, events: EventLog, **own: Any
    ) -> Any:
        """The trainer, or what TRL has against its model or config as a ConfigError."""
        try:
            return cls(config=config, events=events, model=loaded.model, processing_class=inputs.tokenizer, **own)
        except ValueError as error:
            raise ConfigError(f"loss: {config.loss}: TRL refuses this model or config ({error})") from error

    def _send_telemetry(self) -> None:
        """Nothing: a run tells nobody that it runs."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the exported model has a card with the run's own data, config and metrics."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with without_peft_deprecations():
            return super().training_step(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with without_peft_deprecations():
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's, without its count of tokens, which begins anew when a run is continued."""
        for metrics in getattr(self, "_metrics", {}).values():
            metrics.pop("num_tokens", None)
        super().log(logs, start_time)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's, with the tokens counted."""
        if model.training:
            self.count_tokens(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def num_tokens(self, inputs: Mapping[str, Any]) -> int:
        return sum(int(inputs[name].sum()) for name in self.token_masks)


def _settle_reference_adapter(model: Any) -> None:
    """A new adapter is the base model until its first step, so the base model is reference enough.

    An adapter that was trained before keeps TRL's copy of it, which leaves out those of embeddings: they follow here.
    """
    if not is_peft_model(model) or REFERENCE not in model.peft_config:
        return
    for name, parameter in list(model.named_parameters()):
        parts = name.split(".")
        if model.active_adapter in parts:
            copy = ".".join(REFERENCE if part == model.active_adapter else part for part in parts)
            model.get_parameter(copy).data = parameter.detach().clone()
    second = tuple(f".{kind}.{REFERENCE}" for kind in ("lora_B", "lora_embedding_B"))  # zero in a new adapter
    copies = [parameter for name, parameter in model.named_parameters() if any(part in name for part in second)]
    if copies and all(not parameter.any() for parameter in copies):
        model.delete_adapter(REFERENCE)
