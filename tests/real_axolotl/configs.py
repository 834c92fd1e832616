"""The runs of a real Axolotl: each a YAML, told apart by what it changes. What is found in them: the tests beside.

Equalities are exact in theory, so the optimizer is plain SGD: under AdamW a rounding error in a tiny gradient becomes
a whole step.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PLUGIN = "axolotl_dft_plugin.DFTPlugin"
DFT: dict[str, Any] = {"plugins": [PLUGIN], "dft": {"enabled": True}}

ROWS = [
    ("What is two and two?", "four"),
    ("Who?", "Me."),
    ("What is the capital of France?", "The capital of France is Paris. " * 8),
    ("Name a colour and say why you like it more than others.", "Blue is a good colour, since a capital is blue. " * 5),
]
"""Two answers of a few tokens beside two of many: a mean of means is far from the mean over tokens."""

STEPS = 3


def with_test_plugin(*names: str) -> dict[str, Any]:
    """Config with the plugin after plugins of `plugins_for_tests.py`."""
    return {**DFT, "plugins": [*(f"plugins_for_tests.{name}" for name in names), PLUGIN]}


@dataclass(frozen=True)
class Spec:
    """One `axolotl train`. `distribution` says what of this project is on its path."""

    config: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    distribution: str = "installed"  # "installed": the built wheel; "folder": `axolotl_dft_plugin` copied alone
    data: str = "rows"
    model: str = "tiny"
    adapter: str | None = None
    example: bool = False  # examples/axolotl/dft.yml with its own data, instead of what all other runs have in common
    environment: dict[str, str] = field(default_factory=dict)


def evaluated(data: Path) -> dict[str, Any]:
    """Evaluation on the training rows, before the first step and after each."""
    return {
        "test_datasets": [{"path": str(data), "ds_type": "json", "type": "chat_template", "split": "train"}],
        "eval_steps": 1,
        "eval_batch_size": 1,
        "save_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_nll",
    }


SMALL_LORA: dict[str, Any] = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_modules": ["q_proj", "v_proj"],
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
}

ONE_BY_FOUR = {"micro_batch_size": 1, "gradient_accumulation_steps": 4}

LARGE_VOCABULARY = {"micro_batch_size": 4, "sequence_len": 512, "max_steps": 2, "pad_to_sequence_len": True}

SPECS: dict[str, Spec] = {
    "no plugin": Spec(),
    "disabled": Spec({"plugins": [PLUGIN], "dft": {"enabled": False}}),
    "4x1": Spec(DFT),
    "key without options": Spec({"plugins": [PLUGIN], "dft": None, "max_steps": 1}),
    "1x4": Spec(DFT | ONE_BY_FOUR),
    "2 processes, 1x2": Spec(
        with_test_plugin("OnCpu") | {"micro_batch_size": 1, "gradient_accumulation_steps": 2}, processes=2
    ),
    "2 processes, 2x1": Spec(with_test_plugin("OnCpu") | {"micro_batch_size": 2}, processes=2),
    "packed": Spec(DFT | {"sample_packing": True, "sequence_len": 1024, "micro_batch_size": 1}),
    "folder alone": Spec(DFT, distribution="folder"),
    "folder alone, 1x4": Spec(DFT | ONE_BY_FOUR, distribution="folder"),
    "lora": Spec(DFT | SMALL_LORA, adapter="adapter"),
    "lora, 1x4": Spec(DFT | SMALL_LORA | ONE_BY_FOUR, adapter="adapter"),
    "lora on the head": Spec(
        DFT | SMALL_LORA | {"lora_target_modules": ["q_proj", "lm_head"]}, model="tiny with a head of its own"
    ),
    "evaluation": Spec(DFT, data="rows and evaluation"),
    "three rows, evaluation": Spec(DFT | {"max_steps": 1, "micro_batch_size": 3}, data="three rows and evaluation"),
    "2 processes, three rows, evaluation": Spec(
        with_test_plugin("OnCpu") | {"max_steps": 1, "micro_batch_size": 1},
        processes=2,
        data="three rows and evaluation",
    ),
    "2 processes, table of predictions": Spec(
        with_test_plugin("OnCpu") | {"micro_batch_size": 2, "use_wandb": True, "eval_table_size": 1},
        processes=2,
        data="rows and evaluation",
    ),
    "gradient checkpointing": Spec(DFT | {"gradient_checkpointing": True}),
    "whole texts": Spec(DFT, data="texts"),
    "whole texts, Axolotl's chunked cross-entropy": Spec(DFT | {"chunked_cross_entropy": True}, data="texts"),
    "bfloat16": Spec(with_test_plugin("OnCpu") | {"bf16": True}),
    "one row masked": Spec(with_test_plugin("MaskRows") | ONE_BY_FOUR, environment={"MASK_ROWS": "2"}),
    "three rows": Spec(DFT | {"micro_batch_size": 3}, data="rows without the third"),
    "all rows masked": Spec(with_test_plugin("MaskRows") | ONE_BY_FOUR, environment={"MASK_ROWS": "0,1,2,3"}),
    "dpo": Spec({"rl": "dpo", "micro_batch_size": 2}, data="pairs"),
    "dpo with the plugin": Spec(DFT | {"rl": "dpo", "micro_batch_size": 2}, data="pairs"),
    "no plugin, large vocabulary": Spec(
        {"plugins": ["plugins_for_tests.MeasureMemory"]} | LARGE_VOCABULARY, model="large vocabulary"
    ),
    "dense, large vocabulary": Spec(
        with_test_plugin("MeasureMemory") | LARGE_VOCABULARY, distribution="folder", model="large vocabulary"
    ),
    "chunked, large vocabulary": Spec(with_test_plugin("MeasureMemory") | LARGE_VOCABULARY, model="large vocabulary"),
    "the example": Spec({"micro_batch_size": 32, "max_steps": 1, "save_steps": 1}, model="smollm2", example=True),
    "EAFT": Spec(DFT | {"use_eaft": True}),
    "Liger's token scaling": Spec(DFT | {"liger_use_token_scaling": True}),
    "label smoothing": Spec(DFT | {"label_smoothing_factor": 0.1}),
    "unknown key": Spec(DFT | {"dft": {"enabeld": True}}),
    "another loss function": Spec(with_test_plugin("AnotherLoss")),
    "label smoothing by a plugin": Spec(with_test_plugin("SmoothLabels")),
    "a trainer with its own loss": Spec(with_test_plugin("OwnLoss")),
}
