"""The options of each kind of job that is not training: what is asked of which model. Not here: doing it (`worker`)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0.0)]


class JobParams(BaseModel):
    """Base of the options. Where OpenWeights 0.14 has an option, its name and default are the same here."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    job_id_suffix: str | None = None
    """Put behind the job's id; the same work under another suffix is another job."""
    meta: dict[str, JsonValue] = {}
    """Free for your own notes; part of the job's identity."""

    @model_validator(mode="before")
    @classmethod
    def _unset(cls, values: Any) -> Any:
        """`None` for an option that has a default means the default."""
        if not isinstance(values, Mapping):
            return values
        fields = cls.model_fields
        return {
            name: value
            for name, value in values.items()  # pyright: ignore[reportUnknownVariableType] - of any type
            if value is not None or name not in fields or fields[name].default is None
        }


class ModelParams(JobParams):
    """Jobs that ask a model."""

    model: Annotated[str, Field(min_length=1)]
    """A Hub id, a folder of the worker, the id of a fine-tuning job or the `finetuned_model_id` that was chosen for it,
    `<its id>:step-40` for a checkpoint."""
    chat_template: str = "default"


class InferenceParams(ModelParams):
    """Answers to the prompts of a file."""

    input_file_id: str
    max_tokens: Positive = 600
    temperature: NotNegative = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    stop: list[str] = []
    prefill: str = ""
    """Every answer begins with this; `completion` in the results holds what follows."""
    min_tokens: Annotated[int, Field(ge=0)] = 1
    max_model_len: Positive = 8196
    """Longest prompt and answer together; longer prompts are an error."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Log-probabilities of so many most likely tokens at each place of the answer."""
    n_completions_per_prompt: Positive = 1
    batch_size: Positive = 16
    seed: int = 0
    lora_adapter: str | None = None
    """An adapter for `model`: what `model` itself may be."""
    quantization: str | None = None
    load_format: str | None = None
    use_batch: bool = True
    """Accepted for scripts written for OpenWeights; there is no batch service to choose here."""


class LogProbParams(ModelParams):
    """Log-probabilities of the answers in a file."""

    dataset: str
    batch_size: Positive = 8


class MultipleChoiceParams(ModelParams):
    """Questions with choices, answered by log-probability. dataset: a file of them, as docs/evaluation.md says."""

    dataset: str
    batch_size: Positive = 8


class InspectAiParams(ModelParams):
    """A task of Inspect."""

    eval_name: str
    max_model_len: Positive = 8192
    options: str = ""
    """Further options for `inspect eval`."""


class ApiParams(ModelParams):
    """A model that is served until the job is canceled or its time is over."""

    lora_adapters: list[str] = []
    max_lora_rank: Positive = 16
    max_loras: int = -1
    max_model_len: Positive = 2048
    max_num_seqs: Positive = 16
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    server: Literal["transformers", "vllm"] = "transformers"


class CustomParams(JobParams):
    """What a custom job validated itself: anything that is JSON."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=())
