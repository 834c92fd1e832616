"""One config class per objective, and the table that names them. Not here: the loss itself (`losses`, `training`).

An option `ema_alpha` of `SdftConfig` is the public, flat option `sdft_ema_alpha`: the one rule that maps between
the two is in `training.py`.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

BUILT_IN_DEMO_TEMPLATE = """\
{question}

A correct answer to this is:
{demonstration}

Answer the question yourself, in your own words."""


class ObjectiveConfig(BaseModel):
    """Base of the objectives' options."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    supports_packing: ClassVar[bool] = False
    """Whether several rows may share one sequence."""


class SftConfig(ObjectiveConfig):
    """Mean negative log-likelihood over the response tokens. No options of its own."""

    supports_packing: ClassVar[bool] = True


class DftConfig(ObjectiveConfig):
    """Dynamic Fine-Tuning, arXiv:2508.05629: `-sg(p_t) log p_t`. No options of its own."""

    supports_packing: ClassVar[bool] = True


class SdftConfig(ObjectiveConfig):
    """Self-distillation from demonstrations, arXiv:2601.19897: KL to the demonstration-conditioned self."""

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


OBJECTIVES: dict[str, type[ObjectiveConfig]] = {"sft": SftConfig, "dft": DftConfig, "sdft": SdftConfig}
"""Every value of `loss`. A new objective is one class above, one row here and one in `training.build.TRAINERS`."""
