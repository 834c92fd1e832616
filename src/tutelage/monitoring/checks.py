"""What monitoring is given, checked without a model: files, directions, sinks. Not here: using it (`callback.py`)."""

from transformers import AutoConfig

from tutelage.config import TrainingConfig
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import read_conversations
from tutelage.errors import ConfigError
from tutelage.monitoring.prompts import read_prompts
from tutelage.monitoring.sink_settings import require_package


def check_monitoring(config: TrainingConfig, template: ChatTemplate, source: str) -> None:
    """source: where the model is. Raises DataError for a file that is missing or has a row that cannot be asked or
    scored, ConfigError for a direction that is none and for a sink whose package is missing."""
    for name in config.report_to:
        require_package(name)
    _check_directions(config, source)
    directions = [path for one in config.monitoring_directions.values() for path in (one.a, one.b)]
    own = [] if config.monitoring_prompts is None else [config.monitoring_prompts]
    for path in [*own, *directions, *(callback.file for callback in config.sampling_callbacks)]:
        for prompt in read_prompts(path):
            template.encode_prompt(prompt.messages, prompt.place)
    for path in config.logp_callback_datasets.values():
        for conversation in read_conversations(path):
            template.encode_prompt(conversation.prompt, conversation.place)
            template.encode_response(conversation.messages, conversation.place)


def _check_directions(config: TrainingConfig, source: str) -> None:
    layers = _num_layers(source) if config.monitoring_directions else None
    for name, direction in config.monitoring_directions.items():
        option = f"monitoring_directions.{name}"
        if direction.a == direction.b:
            raise ConfigError(f"{option}: a and b are both {direction.a}; give two files whose prompts contrast")
        if layers is not None and not -layers - 1 <= direction.layer <= layers:
            raise ConfigError(
                f"{option}.layer: {direction.layer} does not exist; the model has the layers 0 to {layers}, and -1 is "
                "the last"
            )


def _num_layers(source: str) -> int | None:
    """As the model's config has it; None where it says nothing, as an adapter's folder does."""
    try:
        return getattr(AutoConfig.from_pretrained(source).get_text_config(), "num_hidden_layers", None)
    except (OSError, ValueError):
        return None
