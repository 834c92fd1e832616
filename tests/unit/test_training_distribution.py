"""The configs of `accelerate launch` that are shipped, read by accelerate itself, and what a launch is refused for."""

import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from tests.small_runs import small_config
from tutelage.errors import ConfigError
from tutelage.training.distribution import check_distribution, keep_losses_wide

LAUNCHES = Path(__file__).resolve().parents[2] / "examples" / "accelerate"
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
MACHINES = ["--num_machines", "2", "--machine_rank", "1", "--num_processes", "16"]
ADDRESS = ["--main_process_ip", "10.0.0.1", "--main_process_port", "29501"]


def validated(kind: str, *options: str) -> Any:
    """The arguments of a launch with a shipped config, as accelerate has them once it has checked them."""
    file = str(LAUNCHES / f"{kind}.yaml")
    parsed = launch_command_parser().parse_args(["--config_file", file, *options, "-m", "tutelage", "train", "a.yaml"])
    arguments, _, _ = _validate_launch_command(parsed)
    return arguments


def environment(kind: str, *options: str) -> dict[str, str]:
    """What a launch sets for its processes."""
    arguments = validated(kind, *options)
    if not arguments.use_deepspeed:
        return prepare_multi_gpu_env(arguments)
    arguments.deepspeed_fields_from_accelerate_config = ""  # what the command adds between the two
    return prepare_deepspeed_cmd_env(arguments)[1]


KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
}


def test_every_config_is_known() -> None:
    assert {path.stem for path in LAUNCHES.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize(("kind", "expected"), KINDS.items())
def test_accelerate_takes_the_config(kind: str, expected: DistributedType) -> None:
    """Unknown keys are errors of the loader; the rest is what the launch would be."""
    assert load_config_from_file(str(LAUNCHES / f"{kind}.yaml")).distributed_type == expected
    arguments = validated(kind, "--main_process_port", "0")
    asked = {"ddp": arguments.multi_gpu, "fsdp": arguments.use_fsdp, "deepspeed_zero2": arguments.use_deepspeed}
    assert asked == {name: name == kind for name in KINDS}
    assert (arguments.num_processes, arguments.num_machines, arguments.mixed_precision) == (8, 1, "no")


@pytest.mark.parametrize("kind", KINDS)
def test_sft_is_not_refused_under_the_config(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(kind, "--main_process_port", "0").items():
        monkeypatch.setenv(name, value)
    assert os.environ.get("ACCELERATE_USE_FSDP", "") == ("true" if kind == "fsdp" else "")
    assert os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "") == ("2" if kind == "deepspeed_zero2" else "")
    check_distribution(small_config(tmp_path, "run"))


@pytest.mark.parametrize("kind", KINDS)
def test_two_machines_are_options_of_the_command(kind: str) -> None:
    arguments = validated(kind, *MACHINES, *ADDRESS)
    assert (arguments.num_machines, arguments.machine_rank, arguments.num_processes) == (2, 1, 16)
    if kind != "deepspeed_zero2":  # which asks whether DeepSpeed is installed
        prepare_multi_gpu_env(arguments)
        assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("2", "8", 1)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"loss": "sdft"}, "loss: sdft"),
        ({"loss": "grpo", "grpo_reward_function": "exact_match"}, "loss: grpo"),
        ({"monitoring_eval_steps": 5}, "monitoring_eval_steps"),
        ({"load_in_4bit": True}, "load_in_4bit"),
        ({"logp_callback_datasets": {"own": "rows.jsonl"}}, "logp_callback_datasets"),
        ({"push_to_hub": True, "meta": {"org_id": "me"}}, "push_to_hub"),
    ],
)
def test_fsdp_refuses_what_asks_one_process_alone(
    options: dict[str, Any], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"^{place} .*FSDP.*examples/accelerate/ddp\.yaml"):
        check_distribution(small_config(tmp_path, "run", **options))


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("FSDP_VERSION", "1", "fsdp_version: 1 is not supported; set fsdp_version: 2"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "fsdp_cpu_ram_efficient_loading: true leaves all processes but one"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "set gradient_checkpointing: true"),
    ],
)
def test_fsdp_refuses_settings_of_accelerate_s(
    variable: str, value: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, setting in (FSDP | {variable: value}).items():
        monkeypatch.setenv(name, setting)
    with pytest.raises(ConfigError, match=sentence):
        check_distribution(small_config(tmp_path, "run"))


def test_zero_3_is_refused_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(ConfigError, match=r"^zero_stage: 3 .*set zero_stage: 2, or launch with FSDP"):
        check_distribution(small_config(tmp_path, "run"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"zero_optimization": {"stage": 3}}', "^zero_stage: 3 .*set zero_stage: 2"),
        ("[", r"^deepspeed_config_file: .*json cannot be read \(.*\); give zero_stage: 2"),
        ('{"zero_optimization": {"stage": 2}}', None),
    ],
)
def test_zero_3_in_a_file_of_deepspeed(
    content: str, sentence: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then accelerate says nothing of the stage in the environment."""
    (tmp_path / "zero.json").write_text(content)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "zero.json"))
    refused = nullcontext() if sentence is None else pytest.raises(ConfigError, match=sentence)
    with refused:
        check_distribution(small_config(tmp_path, "run"))


def test_fsdp_that_became_data_parallelism_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate says nothing when it has no GPU to shard on."""
    state = SimpleNamespace(fsdp_plugin=None)
    accelerator: Any = SimpleNamespace(state=state, distributed_type=DistributedType.MULTI_CPU)
    keep_losses_wide(accelerator)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"no GPU to shard on \(MULTI_CPU\); launch with examples/accelerate/ddp"):
        keep_losses_wide(accelerator)


def test_losses_are_not_rounded_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate's own policy casts what the model gives back, its loss too."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    plugin = SimpleNamespace(mixed_precision_policy="accelerate's")
    accelerator: Any = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="no")
    keep_losses_wide(accelerator)
    assert plugin.mixed_precision_policy == "accelerate's"
    accelerator.mixed_precision = "bf16"
    keep_losses_wide(accelerator)
    policy: Any = plugin.mixed_precision_policy
    assert [str(policy.param_dtype), str(policy.reduce_dtype), policy.output_dtype] == [
        "torch.bfloat16",
        "torch.float32",
        None,
    ]
