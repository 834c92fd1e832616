"""What a run is by default, what is refused and in which words. Files and `--set`: test_config_loading.py."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.config import OBJECTIVES, SdftConfig, TrainingConfig, known_options
from tutelage.errors import ConfigError

SEVEN_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

DEFAULTS = {
    "test_file": None,
    "loss": "sft",
    "output_dir": None,
    "chat_template": "default",
    "max_seq_length": 2048,
    "train_on_responses_only": True,
    "packing": True,
    "is_peft": True,
    "r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "lora_bias": "none",
    "use_rslora": True,
    "target_modules": SEVEN_PROJECTIONS,
    "load_in_4bit": False,
    "epochs": 1,
    "max_steps": None,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 8,
    "warmup_steps": 5,
    "logging_steps": 1,
    "optim": "adamw_torch",
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "linear",
    "seed": 3407,
    "beta": 0.1,
    "save_steps": 5000,
    "logp_callback_datasets": {},
    "eval_every_n_steps": 5000,
    "sampling_callbacks": [],
    "eval_batch_size": 8,
    "test_file_eval_strategy": "epoch",
    "report_to": [],
    "meta": {},
    "merge_before_push": True,
    "push_to_private": True,
    "push_to_hub": False,
    "finetuned_model_id": "{org_id}/{model_name}-{job_id}",
    "model_naming_extra_parameters": {},
    "job_id_suffix": None,
    "on_too_long": None,
    "rollout_backend": "transformers",
}

SDFT_DEFAULTS = {
    "ema_alpha": 0.02,
    "teacher": "ema",
    "teacher_sync_steps": 1,
    "max_new_tokens": 256,
    "temperature": 1.0,
    "top_p": 1.0,
    "num_generations": 1,
    "divergence": "reverse_kl",
    "estimator": "full",
    "loss_temperature": 1.0,
    "skip_tokens": 0,
    "normalization": "token",
    "off_policy_fraction": 0.0,
    "check_rows": 32,
}


def config(**options: Any) -> TrainingConfig:
    return TrainingConfig(**({"model": "smollm2", "training_file": "rows.jsonl"} | options))


def refusal(**options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**options)
    return str(caught.value)


@pytest.mark.parametrize(("name", "value"), DEFAULTS.items())
def test_default(name: str, value: object) -> None:
    assert getattr(config(), name) == value


@pytest.mark.parametrize(("name", "value"), SDFT_DEFAULTS.items())
def test_sdft_default(name: str, value: object) -> None:
    assert getattr(SdftConfig(), name) == value


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss": "sft"}, 1e-4),
        ({"loss": "dft", "is_peft": False}, 1e-4),
        ({"loss": "sdft"}, 1e-4),
        ({"loss": "sdft", "is_peft": False}, 1e-5),
        ({"loss": "sdft", "is_peft": False, "learning_rate": 3e-4}, 3e-4),
    ],
)
def test_learning_rate_depends_on_objective_and_way_of_training(options: dict[str, Any], expected: float) -> None:
    assert config(**options).resolved_learning_rate == expected


@pytest.mark.parametrize(("loss", "packs"), [("sft", True), ("dft", True), ("sdft", False)])
def test_only_token_objectives_pack(loss: str, packs: bool) -> None:
    assert config(loss=loss).packs is packs
    assert config(loss=loss, packing=False).packs is False


def test_flat_options_reach_the_objective() -> None:
    chosen = config(loss="sdft", sdft_ema_alpha=0.05, sdft_divergence="forward_kl")
    assert chosen.objective == SdftConfig(ema_alpha=0.05, divergence="forward_kl")


def test_options_of_another_objective_may_stay() -> None:
    """Changing the word `loss` is enough: `sdft_*` in the file does not stop sft."""
    assert config(loss="sft", sdft_ema_alpha=0.05).flat() == config(loss="sft").flat()


def test_options_of_another_objective_must_be_valid() -> None:
    assert refusal(loss="sft", sdft_ema_alpha=2).startswith("sdft_ema_alpha: 2 does not fit; ")


def test_missing_options_are_named_together() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig()
    assert str(caught.value) == (
        "model is missing; add it to the config or pass --set model=…; "
        "training_file is missing; add it to the config or pass --set training_file=…"
    )


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("lerning_rate", "learning_rate"),
        ("sdft_ema_alfa", "sdft_ema_alpha"),
        ("ema_alpha", "sdft_ema_alpha"),
        ("max_step", "max_steps"),
        ("batch_size", "eval_batch_size"),
    ],
)
def test_unknown_key_names_the_nearest(wrong: str, meant: str) -> None:
    assert refusal(**{wrong: 1}) == f"'{wrong}' is not an option; did you mean '{meant}'?"


def test_unknown_key_like_no_other() -> None:
    assert refusal(zzzz=1) == "'zzzz' is not an option"


def test_option_of_sdft_does_not_exist_for_dft() -> None:
    assert refusal(loss="dft", dft_ema_alpha=0.1) == "'dft_ema_alpha' is not an option; did you mean 'sdft_ema_alpha'?"


@pytest.mark.parametrize("loss", ["sfdt", "SFT", "", None, 3, ["sft"]])
def test_unknown_objective_lists_those_there_are(loss: object) -> None:
    message = refusal(loss=loss)
    assert message.startswith("loss: ")
    assert message.endswith("one of sft, dft, sdft, grpo, dpo, orpo")


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"max_steps": 0}, "max_steps: 0 does not fit; "),
        ({"r": -1}, "r: -1 does not fit; "),
        ({"epochs": 0}, "epochs: 0 does not fit; "),
        ({"learning_rate": 0}, "learning_rate: 0 does not fit; "),
        ({"learning_rate": "fast"}, "learning_rate: 'fast' does not fit; "),
        ({"learning_rate": float("nan")}, "learning_rate: nan does not fit; "),
        ({"learning_rate": float("inf")}, "learning_rate: inf does not fit; "),
        ({"lora_dropout": 1.0}, "lora_dropout: 1.0 does not fit; "),
        ({"warmup_steps": -1}, "warmup_steps: -1 does not fit; "),
        ({"on_too_long": "cut"}, "on_too_long: 'cut' does not fit; "),
        ({"lora_bias": "some"}, "lora_bias: 'some' does not fit; "),
        ({"test_file_eval_strategy": "often"}, "test_file_eval_strategy: 'often' does not fit; "),
        ({"report_to": ["tensorboard", "comet"]}, "report_to.1: 'comet' does not fit; "),
        ({"rollout_backend": "sglang"}, "rollout_backend: 'sglang' does not fit; "),
        ({"sampling_callbacks": [{"file": "p.jsonl", "every": 3}]}, "sampling_callbacks.0.every: 3 does not fit; "),
        ({"monitoring_directions": {"formal": {"a": "a.jsonl"}}}, "monitoring_directions.formal.b is missing; "),
        ({"sdft_ema_alpha": -0.1}, "sdft_ema_alpha: -0.1 does not fit; "),
        ({"sdft_temperature": 0}, "sdft_temperature: 0 does not fit; "),
        ({"sdft_top_p": 1.5}, "sdft_top_p: 1.5 does not fit; "),
        ({"sdft_jsd_beta": 1.0}, "sdft_jsd_beta: 1.0 does not fit; "),
        ({"sdft_teacher": "student"}, "sdft_teacher: 'student' does not fit; "),
        ({"sdft_skip_tokens": -1}, "sdft_skip_tokens: -1 does not fit; "),
        ({"sdft_num_generations": 0}, "sdft_num_generations: 0 does not fit; "),
        ({"sdft_off_policy_fraction": 1.1}, "sdft_off_policy_fraction: 1.1 does not fit; "),
    ],
)
def test_value_out_of_range_names_option_and_value(options: dict[str, Any], start: str) -> None:
    message = refusal(**options)
    assert message.startswith(start)
    assert len(message) > len(start)


def test_all_faults_are_told_at_once() -> None:
    message = refusal(r=0, epochs=-1)
    assert "r: 0 does not fit" in message
    assert "epochs: -1 does not fit" in message


@pytest.mark.parametrize(
    ("template", "missing"),
    [
        ("only {question}", "the template lacks {demonstration};"),
        ("only {demonstration}", "the template lacks {question};"),
        ("neither", "the template lacks {question} and {demonstration};"),
    ],
)
def test_demo_template_needs_both_placeholders(template: str, missing: str) -> None:
    message = refusal(loss="sdft", sdft_demo_template=template)
    assert message.startswith("sdft_demo_template: ")
    assert missing in message


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
def test_sampled_estimates_reverse_kl_only(divergence: str) -> None:
    message = refusal(loss="sdft", sdft_estimator="sampled", sdft_divergence=divergence)
    assert divergence in message
    assert "set sdft_divergence: reverse_kl or sdft_estimator: full" in message


def test_sampled_needs_the_students_own_tokens() -> None:
    message = refusal(loss="sdft", sdft_estimator="sampled", sdft_off_policy_fraction=0.25)
    assert "sdft_off_policy_fraction" in message
    assert "0.25" in message


def test_sampled_with_reverse_kl_is_fine() -> None:
    chosen = config(loss="sdft", sdft_estimator="sampled").objective
    assert isinstance(chosen, SdftConfig)
    assert (chosen.estimator, chosen.divergence) == ("sampled", "reverse_kl")


def test_a_push_needs_a_name() -> None:
    assert refusal(push_to_hub=True) == (
        "finetuned_model_id still holds {org_id}; give the whole id, or meta: {org_id: your-name}"
    )
    assert config(push_to_hub=True, meta={"org_id": "me"}).push_to_hub
    assert config(push_to_hub=True, finetuned_model_id="me/mine").push_to_hub


def test_sdft_refuses_an_adapter_on_the_head() -> None:
    assert refusal(loss="sdft", target_modules=["q_proj", "lm_head"]) == (
        "target_modules: sdft needs a head without an adapter; leave out 'lm_head'"
    )
    assert config(loss="sft", target_modules=["lm_head"]).target_modules == ["lm_head"]


@pytest.mark.parametrize("loss", ["grpo", "dpo"])
def test_so_do_those_that_multiply_with_the_heads_own_weight(loss: str) -> None:
    assert refusal(loss=loss, target_modules=["lm_head"]).startswith(f"target_modules: {loss} needs a head")


def test_four_bits_need_an_adapter() -> None:
    assert refusal(load_in_4bit=True, is_peft=False) == (
        "load_in_4bit: weights of four bits cannot be trained themselves; set is_peft: true"
    )
    assert config(load_in_4bit=True).is_peft


def test_a_judge_has_a_name() -> None:
    assert refusal(loss="grpo", grpo_reward_function="llm_judge") == (
        "grpo_reward_function 'llm_judge' asks a chat model; name it with grpo_judge_model"
    )
    assert config(loss="grpo", grpo_reward_function="llm_judge", grpo_judge_model="m").loss == "grpo"


def test_beta_may_be_0_but_not_for_dpo() -> None:
    assert config(loss="grpo", beta=0.0).beta == 0.0
    assert refusal(loss="dpo", beta=0.0) == "beta: 0 leaves dpo no gradient; use a positive one, such as 0.1"


def test_biases_have_no_reference() -> None:
    assert refusal(loss="dpo", lora_bias="all") == (
        "lora_bias: 'all' trains biases of the model that dpo compares with; set none"
    )
    assert config(loss="grpo", lora_bias="all", beta=0.0).lora_bias == "all"


def test_a_group_has_at_least_two_answers() -> None:
    assert refusal(loss="grpo", grpo_num_generations=1) == (
        "grpo_num_generations: 1 does not fit; input should be greater than or equal to 2"
    )


def test_a_config_does_not_change() -> None:
    chosen = config()
    with pytest.raises(ValueError, match="frozen"):
        chosen.r = 8  # pyright: ignore[reportAttributeAccessIssue]
    assert chosen.r == 16


def test_defaults_are_not_shared() -> None:
    config().target_modules.append("lm_head")
    assert config().target_modules == SEVEN_PROJECTIONS


def test_flat_holds_every_option_of_the_run_and_no_other() -> None:
    names = set(config(loss="sdft").flat())
    assert names == {*TrainingConfig.model_fields, *(name for name in known_options() if name.startswith("sdft_"))}
    assert set(config(loss="dft").flat()) == set(TrainingConfig.model_fields)


def test_flat_fills_in_the_learning_rate() -> None:
    assert config(loss="sdft", is_peft=False).flat()["learning_rate"] == 1e-5


def test_what_is_monitored_needs_a_rhythm() -> None:
    for options in (
        {"monitoring_prompts": "p.jsonl"},
        {"monitoring_directions": {"d": {"a": "a.jsonl", "b": "b.jsonl"}}},
    ):
        (name,) = options
        assert (
            refusal(**options)
            == f"{name}: nothing is measured without monitoring_eval_steps; give it, or leave this out"
        )


def test_flat_is_plain_json() -> None:
    directions = {"formal": {"a": Path("a.jsonl"), "b": Path("b.jsonl")}}
    flat = config(output_dir=Path("runs/one"), monitoring_eval_steps=5, monitoring_directions=directions).flat()
    assert flat["training_file"] == "rows.jsonl"
    assert flat["output_dir"] == "runs/one"
    assert flat["monitoring_directions"] == {
        "formal": {"a": "a.jsonl", "b": "b.jsonl", "layer": -1, "position": "last"}
    }


@given(
    loss=st.sampled_from(sorted(OBJECTIVES)),
    is_peft=st.booleans(),
    r=st.integers(1, 512),
    learning_rate=st.none() | st.floats(1e-12, 1.0),
    max_steps=st.none() | st.integers(1, 10**9),
    test_file=st.none() | st.just("held-out.jsonl"),
    report_to=st.lists(st.sampled_from(["trackio", "tensorboard", "wandb", "mlflow"])),
    meta=st.dictionaries(st.text(), st.integers() | st.text() | st.booleans() | st.none()),
    sdft_ema_alpha=st.floats(0.0, 1.0),
    sdft_teacher=st.sampled_from(["ema", "base", "live"]),
)
def test_flat_round_trip(**options: Any) -> None:
    """`TrainingConfig(**config.flat())` is the same run, so its flat form is a fixed point."""
    flat = config(**options).flat()
    assert TrainingConfig(**flat).flat() == flat


def test_a_config_survives_pickling() -> None:
    """Two processes of one run get the same config."""
    chosen = config(loss="sdft", sdft_ema_alpha=0.3)
    copy = pickle.loads(pickle.dumps(chosen))
    assert copy.flat() == chosen.flat()
    assert copy.objective == SdftConfig(ema_alpha=0.3)
