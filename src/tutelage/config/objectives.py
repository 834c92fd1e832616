"""One config class per objective, and the table that names them. Not here: the loss itself (`losses`, `training`).

An option `ema_alpha` of `SdftConfig` is the public, flat option `sdft_ema_alpha`: the one rule that maps between
the two is in `training.py`.
"""

from enum import Enum
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

BUILT_IN_DEMO_TEMPLATE = """\
{question}

A correct answer to this is:
{demonstration}

Answer the question yourself, in your own words."""


class Purpose(str, Enum):
    """What a data file is for; the objective decides which one it needs."""

    CONVERSATIONS = "conversations"  # sft, dft, sdft, grpo
    PREFERENCE = "preference"  # dpo, orpo


class ObjectiveConfig(BaseModel):
    """Base of the objectives' options."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    supports_packing: ClassVar[bool] = False
    """Whether several rows may share one sequence."""
    plain_head: ClassVar[bool] = False
    """Whether the head must be without an adapter, since the objective multiplies with its weight itself."""
    purpose: ClassVar[Purpose] = Purpose.CONVERSATIONS
    """The kind of data file it learns from."""


class SftConfig(ObjectiveConfig):
    """Mean negative log-likelihood over the response tokens. No options of its own."""

    supports_packing: ClassVar[bool] = True


class DftConfig(ObjectiveConfig):
    """Dynamic Fine-Tuning, arXiv:2508.05629: `-sg(p_t) log p_t`. No options of its own."""

    supports_packing: ClassVar[bool] = True


class SdftConfig(ObjectiveConfig):
    """Self-distillation from demonstrations, arXiv:2601.19897: KL to the demonstration-conditioned self."""

    plain_head: ClassVar[bool] = True

    ema_alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.02
    """α in φ ← α·θ + (1−α)·φ. 0: the teacher never moves; 1: its weights equal the student's after each step."""
    teacher: Literal["ema", "base", "live"] = "ema"
    """`ema`; `base`: the model before training; `live`: the student itself."""
    teacher_sync_steps: Annotated[int, Field(ge=1)] = 1
    """Optimizer steps between two EMA updates."""
    teacher_device: Literal["model", "cpu"] = "model"
    """Where the EMA lives: beside the model's weights, or in host memory."""
    demo_template: str = BUILT_IN_DEMO_TEMPLATE
    """How the demonstration enters the last user turn; `{question}` and `{demonstration}` are both required."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    """Longest rollout, in tokens."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Sampling temperature of the rollouts."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus of the sampling; 1 samples from the whole distribution."""
    num_generations: Annotated[int, Field(ge=1)] = 1
    """Rollouts per prompt."""
    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "reverse_kl"
    """`reverse_kl` is KL(student ‖ teacher), `forward_kl` is KL(teacher ‖ student)."""
    jsd_beta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Share of the teacher in the mixture of the Jensen-Shannon divergence."""
    estimator: Literal["full", "topk", "sampled"] = "full"
    """Over the whole vocabulary; over the union of both top-k with a tail bucket; on the sampled token."""
    topk: Annotated[int, Field(ge=1)] = 64
    """k of the `topk` estimator."""
    loss_temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Temperature of both distributions inside the divergence."""
    skip_tokens: Annotated[int, Field(ge=0)] = 0
    """First response tokens left out of the loss."""
    normalization: Literal["token", "sequence"] = "token"
    """`token`: mean over the step's tokens; `sequence`: mean per response, then over responses."""
    off_policy_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of prompts that use the gold answer in place of a rollout."""
    gold_gain_rows: Annotated[int, Field(ge=0)] = 4
    """Rows per step on which the demonstration's gain on the gold answer is measured (two forward passes each)."""
    check_rows: Annotated[int, Field(ge=0)] = 32
    """Rows of the check before step 1: does the demonstration help? 0 leaves it out."""

    @field_validator("demo_template")
    @classmethod
    def _has_placeholders(cls, template: str) -> str:
        missing = [name for name in ("{question}", "{demonstration}") if name not in template]
        if missing:
            raise ValueError(
                f"the template lacks {' and '.join(missing)}; both {{question}} and {{demonstration}} are needed"
            )
        return template

    @model_validator(mode="after")
    def _estimator_fits(self) -> "SdftConfig":
        if self.estimator == "sampled" and self.divergence != "reverse_kl":
            raise ValueError(
                f"sdft_estimator 'sampled' estimates reverse_kl, not {self.divergence}; "
                "set sdft_divergence: reverse_kl or sdft_estimator: full"
            )
        if self.estimator == "sampled" and self.off_policy_fraction > 0:
            raise ValueError(
                "sdft_estimator 'sampled' needs the student's own tokens, but sdft_off_policy_fraction is "
                f"{self.off_policy_fraction}; set it to 0 or sdft_estimator: full"
            )
        return self


class GrpoConfig(ObjectiveConfig):
    """Group relative policy optimisation, arXiv:2402.03300: sampled answers, weighted by how much better than their
    group a reward finds them."""

    plain_head: ClassVar[bool] = True

    reward_function: str = "rouge_l"
    """A built-in reward, `path/to/file.py:function`, or `package.module:function`."""
    num_generations: Annotated[int, Field(ge=2)] = 8
    """Answers per prompt: the group whose mean reward an answer is compared with."""
    max_completion_length: Annotated[int, Field(ge=1)] = 256
    """Longest answer, in tokens."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Sampling temperature; log-probabilities in the loss are at this temperature too."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus of the sampling; 1 samples from the whole distribution."""
    epsilon: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """The ratio of new to old probability is clipped to 1 ± ε."""
    loss_type: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    """How tokens are averaged: over the whole step, per answer, or over the longest possible answer."""
    traits_language: str = "spanish"
    """The language that the reward `traits` counts words of."""
    judge_model: str | None = None
    """The model that `llm_judge` and `similarity_judge` ask."""
    judge_base_url: str | None = None
    """Its OpenAI-compatible endpoint; unset, `OPENAI_BASE_URL`, or OpenAI's own."""
    judge_timeout: Annotated[float, Field(gt=0.0)] = 30.0
    """Seconds a call to the judge may take; after that its score is NaN."""
    judge_parallelism: Annotated[int, Field(ge=1)] = 8
    """Calls to the judge at the same time."""
    judge_temperature: float | None = 0.0
    """None sends none, for models that refuse it."""
    judge_max_tokens: Annotated[int, Field(ge=1)] | None = 256
    """Longest answer of the judge, its thoughts included; None sends no limit."""
    max_unscored_batches: Annotated[int, Field(ge=1)] = 3
    """Batches in a row without a single finite score after which the run stops."""

    @model_validator(mode="after")
    def _judge_is_named(self) -> "GrpoConfig":
        if self.reward_function in JUDGE_REWARDS and self.judge_model is None:
            raise ValueError(
                f"grpo_reward_function '{self.reward_function}' asks a chat model; name it with grpo_judge_model"
            )
        return self


JUDGE_REWARDS = ("llm_judge", "similarity_judge")
"""Rewards that ask a model over HTTP."""


class DpoConfig(ObjectiveConfig):
    """Direct preference optimisation, arXiv:2305.18290, with `beta` on the reference. No options of its own."""

    plain_head: ClassVar[bool] = True
    purpose: ClassVar[Purpose] = Purpose.PREFERENCE


class OrpoConfig(ObjectiveConfig):
    """Odds ratio preference optimisation, arXiv:2403.07691, without a reference; `beta` is its λ. No own options."""

    purpose: ClassVar[Purpose] = Purpose.PREFERENCE


OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "sft": SftConfig,
    "dft": DftConfig,
    "sdft": SdftConfig,
    "grpo": GrpoConfig,
    "dpo": DpoConfig,
    "orpo": OrpoConfig,
}
"""Every value of `loss`. A new objective is one class above, one row here and one in `training.build.TRAINERS`."""
