"""The files that monitoring reads, checked without a model. Not here: using them (`callback.py`)."""

from tutelage.config import TrainingConfig
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import read_conversations
from tutelage.monitoring.prompts import read_prompts


def check_files(config: TrainingConfig, template: ChatTemplate) -> None:
    """Raises DataError for a file that is missing or has a row that cannot be asked or scored."""
    directions = [path for one in config.monitoring_directions.values() for path in (one.a, one.b)]
    own = [] if config.monitoring_prompts is None else [config.monitoring_prompts]
    for path in [*own, *directions, *(callback.file for callback in config.sampling_callbacks)]:
        for prompt in read_prompts(path):
            template.encode_prompt(prompt.messages, prompt.place)
    for path in config.logp_callback_datasets.values():
        for conversation in read_conversations(path):
            template.encode_prompt(conversation.prompt, conversation.place)
            template.encode_response(conversation.messages, conversation.place)
