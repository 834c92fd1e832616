"""`TrainingConfig`: what a run is. Every field with its default and unit, and every rule between fields.

Not here: reading files and `--set` (`loading.py`), options of one objective (`objectives.py`).
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from tutelage.config.faults import sentence_of
from tutelage.config.objectives import OBJECTIVES, ObjectiveConfig
from tutelage.errors import ConfigError, nearest

Positive = Annotated[int, Field(ge=1)]
Sink = Literal["trackio", "tensorboard", "wandb", "mlflow"]


class Direction(BaseModel):
    """Two files of contrasting prompts; the direction is d = normalise(mean h(a) − mean h(b))."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    a: Path
    b: Path
    layer: int = -1
    """Index into the hidden states: 0 is the embedding, -1 the last layer."""
    position: Literal["last", "mean"] = "last"
    """The last prompt token, or the mean over the prompt's tokens."""


class SamplingCallback(BaseModel):
    """Sample answers to the prompts of a file while training."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    file: Path
    every_n_steps: Positive = 100
    max_new_tokens: Positive = 128
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    tag: str = "samples"


class TrainingConfig(BaseModel):
    """Everything that defines a training run. The same names in YAML, in Python and over HTTP.

    Options of an objective are written flat: `sdft_ema_alpha=0.05`. Raises ConfigError for an unknown key (the
    nearest known one is named) and for combinations that cannot work.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str
    """A Hub id, a folder, or a GGUF file. `smollm2` is the small model the demo uses."""
    training_file: Path
    """Demonstrations: JSON lines, `.gz` too."""
    test_file: Path | None = None
    """Demonstrations held out for evaluation."""
    loss: Literal["sft", "dft", "sdft", "grpo", "dpo", "orpo"] = "sft"
    """The objective: the one word to change."""
    output_dir: Path | None = None
    """Folder of the run; unset, `runs/<loss>-<hash of the config>`."""

    chat_template: str = "default"
    """`default` is the tokenizer's own; else a template's text or a `.jinja` file."""
    max_seq_length: Positive = 2048
    """Longest row in tokens: prompt, demonstration and answer together."""
    on_too_long: Literal["drop", "error"] | None = None
    """Rows longer than `max_seq_length`; unset, they are dropped, and more than 5 % of them are an error."""
    train_on_responses_only: bool = True
    """Train every assistant turn and nothing else; False trains all tokens."""
    packing: bool = True
    """Put several rows into one sequence (sft, dft); they never attend to each other."""

    is_peft: bool = True
    """LoRA; False trains every weight."""
    r: Positive = 16
    lora_alpha: Annotated[float, Field(gt=0.0)] = 16
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    lora_bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = True
    """Rank-stabilised: the adapter is scaled by alpha / √r."""
    target_modules: list[str] = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    load_in_4bit: bool = False
    """Quantise the frozen weights to 4 bits (needs a GPU and bitsandbytes)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    epochs: Annotated[float, Field(gt=0.0)] = 1.0
    max_steps: Positive | None = None
    """Optimizer steps; overrides `epochs`."""
    per_device_train_batch_size: Positive = 2
    gradient_accumulation_steps: Positive = 8
    learning_rate: Annotated[float, Field(gt=0.0)] | None = None
    """Unset: 1e-4; for sdft 1e-4 with LoRA, 1e-5 without."""
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    lr_scheduler_type: str = "linear"
    optim: str = "adamw_torch"
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0
    seed: int = 3407
    beta: Annotated[float, Field(ge=0.0)] = 0.1
    """grpo: weight of the KL to the model before training, 0 for none; dpo: inverse temperature; orpo: its λ."""
    rollout_backend: Literal["transformers", "vllm"] = "transformers"
    """What samples the student's rollouts; vllm for sdft with LoRA, in one process."""

    logging_steps: Positive = 1
    save_steps: Positive = 5000
    save_total_limit: Positive | None = None
    """Keep only the newest checkpoints; unset, all."""
    test_file_eval_strategy: Literal["no", "steps", "epoch"] = "epoch"
    test_file_eval_steps: Positive = 100
    eval_batch_size: Positive = 8
    report_to: list[Sink] = []
    """Where metrics go beside `events.jsonl`."""

    logp_callback_datasets: dict[str, Path] = {}
    """Named files whose answers' mean log-probability is measured every `eval_every_n_steps`."""
    logp_per_token: bool = False
    """Keep the log-probability of every token of those files in `samples.jsonl`."""
    eval_every_n_steps: Positive = 5000
    sampling_callbacks: list[SamplingCallback] = []
    monitoring_eval_steps: Positive | None = None
    """Optimizer steps between two measurements of drift and KL to base; unset, none."""
    monitoring_prompts: Path | None = None
    """Prompts for `kl_vs_base` (one JSON object with `messages` or `prompt` a line); unset, built-in ones."""
    monitoring_max_new_tokens: Positive = 32
    """Length of the answers on which KL to base is measured."""
    monitoring_own_answers: bool = True
    """Measure KL on the model's answers of now too, which have to be generated each time."""
    monitoring_directions: dict[str, Direction] = {}
    """Named directions for `cos_sim`."""

    merge_before_push: bool = True
    """Write `model/`, the adapter merged into its base; False writes `adapter/`."""
    push_to_hub: bool = False
    push_to_private: bool = True
    finetuned_model_id: str = "{org_id}/{model_name}-{job_id}"
    model_naming_extra_parameters: dict[str, str] = {}
    job_id_suffix: str | None = None
    meta: dict[str, Any] = {}
    """Free for your own notes; copied into `run.json`."""

    _objective: ObjectiveConfig = PrivateAttr()

    def __init__(self, **options: Any) -> None:
        flat, own = _split_options(options)
        loss = flat.get("loss", "sft")
        if not isinstance(loss, str) or loss not in OBJECTIVES:
            names = ", ".join(OBJECTIVES)
            raise ConfigError(f"loss: '{loss}' is not an objective{nearest(str(loss), OBJECTIVES)}; one of {names}")
        # Options of the other objectives may stay in the file when the word changes, but they must be valid.
        objectives = {name: _objective_options(name, own[name]) for name in OBJECTIVES}
        try:
            super().__init__(**flat)
        except ValidationError as error:
            raise ConfigError(sentence_of(error)) from error
        self._objective = objectives[loss]

    @property
    def objective(self) -> ObjectiveConfig:
        """Options of the chosen objective, e.g. an `SdftConfig`."""
        return self._objective

    @model_validator(mode="after")
    def _rules(self) -> "TrainingConfig":
        if self.push_to_hub and "{org_id}" in self.finetuned_model_id and not self.meta.get("org_id"):
            raise ValueError("finetuned_model_id still holds {org_id}; give the whole id, or meta: {org_id: your-name}")
        if self.monitoring_eval_steps is None and (self.monitoring_directions or self.monitoring_prompts):
            unused = "monitoring_directions" if self.monitoring_directions else "monitoring_prompts"
            raise ValueError(f"{unused}: nothing is measured without monitoring_eval_steps; give it, or leave this out")
        if self.load_in_4bit and not self.is_peft:
            raise ValueError("load_in_4bit: weights of four bits cannot be trained themselves; set is_peft: true")
        if "lm_head" in self.target_modules and OBJECTIVES[self.loss].plain_head:
            raise ValueError(f"target_modules: {self.loss} needs a head without an adapter; leave out 'lm_head'")
        if (
            self.is_peft
            and self.lora_bias != "none"
            and (self.loss == "dpo" or (self.loss == "grpo" and self.beta > 0))
        ):
            raise ValueError(
                f"lora_bias: '{self.lora_bias}' trains biases of the model that {self.loss} compares with; set none"
            )
        if self.rollout_backend == "vllm" and not (
            self.loss == "sdft" and self.is_peft and self.lora_bias == "none" and self.r <= 512
        ):
            raise ValueError(
                "rollout_backend: vllm samples for sdft with LoRA (is_peft: true, lora_bias: none, r up to 512) only; "
                "set transformers"
            )
        if self.loss == "dpo" and self.beta == 0.0:
            raise ValueError("beta: 0 leaves dpo no gradient; use a positive one, such as 0.1")
        return self

    @property
    def resolved_learning_rate(self) -> float:
        """`learning_rate`, or the default of this objective and way of training."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-5 if self.loss == "sdft" and not self.is_peft else 1e-4

    @property
    def packs(self) -> bool:
        """Whether rows really share sequences: `packing`, where the objective allows it."""
        return self.packing and self.objective.supports_packing

    def flat(self) -> dict[str, Any]:
        """All options as plain JSON values under their public names, defaults filled in.

        Options of the objective that is not in use are left out. `TrainingConfig(**config.flat())` is the same run.
        """
        values: dict[str, Any] = self.model_dump(mode="json")
        values["learning_rate"] = self.resolved_learning_rate
        own = self.objective.model_dump(mode="json")
        return values | {f"{self.loss}_{name}": value for name, value in own.items()}


def known_options() -> list[str]:
    """Every public option name, flat ones included."""
    own = [f"{name}_{field}" for name, cls in OBJECTIVES.items() for field in cls.model_fields]
    return [*TrainingConfig.model_fields, *own]


def _split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Sort options into those of the run and those of each objective; refuse unknown ones."""
    flat: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {name: {} for name in OBJECTIVES}
    for key, value in options.items():
        if key in TrainingConfig.model_fields:
            flat[key] = value
            continue
        objective, _, field = key.partition("_")
        if objective in OBJECTIVES and field in OBJECTIVES[objective].model_fields:
            own[objective][field] = value
        else:
            raise ConfigError(f"'{key}' is not an option{nearest(key, known_options())}")
    return flat, own


def _objective_options(name: str, options: dict[str, Any]) -> ObjectiveConfig:
    try:
        return OBJECTIVES[name](**options)
    except ValidationError as error:
        raise ConfigError(sentence_of(error, prefix=f"{name}_")) from error
