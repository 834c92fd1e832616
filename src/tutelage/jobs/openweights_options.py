"""Options of a fine-tuning job as OpenWeights 0.14 names them, under the names they have here.

Not here: what the options mean (`tutelage.config`).
"""

from collections.abc import Mapping
from typing import Any, cast

from tutelage.config import SamplingCallback, TrainingConfig
from tutelage.errors import ConfigError

OPTIMIZERS = {"adamw": "adamw_torch", "adam": "adamw_torch"}
CALLBACK = {"dataset": "file", "eval_steps": "every_n_steps", "max_tokens": "max_new_tokens"}
OF_THE_MACHINE = ("output_dir", "report_to")
"""What a job may not choose: it has a folder, and its events are the report."""


def renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options for `TrainingConfig`. Null for an option with a default means the default. Raises ConfigError."""
    fields = TrainingConfig.model_fields
    own = {
        name: value
        for name, value in options.items()
        if name not in OF_THE_MACHINE and (value is not None or name not in fields or fields[name].default is None)
    }
    suffix = own.pop("ft_id_suffix", None)
    if suffix is not None:
        own.setdefault("job_id_suffix", suffix)
    if isinstance(own.get("optim"), str):
        own["optim"] = OPTIMIZERS.get(str(own["optim"]), own["optim"])
    every = own.get("logging_steps", fields["logging_steps"].default)
    if own.get("eval_every_n_steps") == "log":
        own["eval_every_n_steps"] = every
    callbacks = own.get("sampling_callbacks")
    if isinstance(callbacks, list):
        own["sampling_callbacks"] = [_callback(item, every) for item in cast("list[Any]", callbacks)]
    return own


def _callback(item: Any, every: Any) -> Any:
    if not isinstance(item, Mapping):
        return item
    values = dict(cast("Mapping[str, Any]", item))
    values.pop("batch_size", None)  # of the sampling alone; no answer depends on it
    written_for_openweights = "dataset" in values
    for theirs, ours in CALLBACK.items():
        if theirs in values:
            if ours in values:
                raise ConfigError(f"sampling_callbacks: '{theirs}' and '{ours}' are the same option; leave out one")
            values[ours] = values.pop(theirs)
    if written_for_openweights:  # what is left out is what it is there
        values = {"every_n_steps": 10, "max_new_tokens": 600, "temperature": 0.0} | values
    if values.get("every_n_steps") == "log":
        values["every_n_steps"] = every
    unknown = next((name for name in values if name not in SamplingCallback.model_fields), None)
    if unknown is not None:
        raise ConfigError(f"sampling_callbacks: '{unknown}' is not an option of a callback")
    return values
