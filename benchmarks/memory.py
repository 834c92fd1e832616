"""The memory of a run: the table of docs/scaling.md, and a small run's peak to hold the calculator against.

python -m benchmarks.memory       # the table, as Markdown
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tutelage.config import TrainingConfig
from tutelage.config.memory import GB, ModelShape, Placement, memory_of

MODELS = {
    "Qwen2.5-7B": ModelShape(152_064, 3584, 28, 18_944, 28, 4, 128, tied=False),
    "Qwen2.5-32B": ModelShape(152_064, 5120, 64, 27_648, 40, 8, 128, tied=False),
    "Llama-3.1-70B": ModelShape(128_256, 8192, 80, 28_672, 64, 8, 128, tied=False),
}
"""As their `config.json` has them."""
TABLE_OPTIONS: dict[str, Any] = {
    "model": "any",
    "training_file": "any.jsonl",
    "max_seq_length": 2048,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "gradient_checkpointing": True,
    "grpo_reward_function": "exact_match",
    "sdft_max_new_tokens": 512,
}
"""Rows of 2048 tokens, one at a time, activations computed again."""
ROWS: dict[str, tuple[dict[str, Any], Placement]] = {
    "sft, dft · LoRA, 4 bits · 1 GPU": ({"loss": "sft", "load_in_4bit": True}, Placement()),
    "sft, dft · LoRA · 1 GPU": ({"loss": "sft"}, Placement()),
    "sft, dft · LoRA · 8 GPUs, FSDP": ({"loss": "sft"}, Placement(8, "fsdp")),
    "sft, dft · full · 1 GPU": ({"loss": "sft", "is_peft": False}, Placement()),
    "sft, dft · full · 8 GPUs, ZeRO-2": ({"loss": "sft", "is_peft": False}, Placement(8, "zero2")),
    "sft, dft · full · 8 GPUs, FSDP": ({"loss": "sft", "is_peft": False}, Placement(8, "fsdp")),
    "sft, dft · full · 32 GPUs, FSDP": ({"loss": "sft", "is_peft": False}, Placement(32, "fsdp")),
    "sdft · LoRA · 1 GPU": ({"loss": "sdft"}, Placement()),
    "sdft · full · 1 GPU": ({"loss": "sdft", "is_peft": False}, Placement()),
    "grpo · LoRA · 1 GPU": ({"loss": "grpo"}, Placement()),
    "dpo · LoRA · 1 GPU": ({"loss": "dpo"}, Placement()),
    "orpo · LoRA · 1 GPU": ({"loss": "orpo"}, Placement()),
}
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Freed tensors are given back at once; else a peak is what the heap has grown to, a third more."""
TOKENS = 320
"""Of each row of a measured run."""


def table() -> str:
    """GB of one GPU for each of `ROWS` and `MODELS`, as Markdown."""
    lines = [f"| | {' | '.join(MODELS)} |", f"|---|{'---:|' * len(MODELS)}"]
    for name, (options, place) in ROWS.items():
        config = TrainingConfig(**(TABLE_OPTIONS | options))
        cells = [f"{memory_of(config, shape, place).peak / GB:.0f}" for shape in MODELS.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measured_and_estimated(shape: ModelShape, options: dict[str, Any]) -> tuple[float, float]:
    """MiB that a run of two steps takes at its peak on this machine's CPU, and what the calculator says."""
    asked = json.dumps({"shape": vars(shape), "options": options})
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", asked],
        env=os.environ | MALLOC | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(result.stdout + result.stderr)
    measured, estimated = json.loads(result.stdout.splitlines()[-1])
    return measured, estimated


def _measure(shape: ModelShape, options: dict[str, Any]) -> tuple[float, float]:
    from benchmarks.measure import MIB, PeakMemory
    from tutelage.training import run
    from tutelage.training.run_trainer import RunTrainer

    peaks: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, shape)
        config = TrainingConfig(**(_options(folder, "run") | options))
        peak: PeakMemory | None = None

        def before_export(*_: Any) -> None:
            """The peak until here is that of the steps."""
            if peak is not None:
                peaks.append(peak.mib())

        def no_checkpoint(self: RunTrainer, model: Any, trial: Any) -> None:
            """Writing one takes more than a step of so small a run."""

        run.export_model = before_export
        RunTrainer._save_checkpoint = no_checkpoint
        small = folder / "small"
        small.mkdir()
        _write(small, ModelShape(shape.vocabulary, 64, 1, 64, 1, 1, 64, tied=True))
        run.train(TrainingConfig(**(_options(small, "run") | options)))  # imports what a run imports
        peak = PeakMemory()
        run.train(config)
    return peaks[0], memory_of(config, shape, Placement(half=False)).peak / MIB


def _options(folder: Path, name: str) -> dict[str, Any]:
    return {
        "model": str(folder),
        "training_file": folder / "rows.jsonl",
        "output_dir": folder / name,
        "packing": False,
        "max_steps": 2,
        "max_seq_length": TOKENS,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
    }


def _write(folder: Path, shape: ModelShape) -> None:
    """A model of random weights with a tokenizer of a token a byte, and rows of about `TOKENS` that share nothing."""
    import random

    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.tiny import tiny_tokenizer

    tokenizer: Any = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head_width,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    drawn = random.Random(0)
    texts = ["".join(drawn.choices("bcdfg0123456789#", k=TOKENS - 20)) for _ in range(8)]
    turns = [[{"role": "user", "content": one[:8]}, {"role": "assistant", "content": one[8:]}] for one in texts]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asked = json.loads(sys.argv[1])
        print("\n" + json.dumps(_measure(ModelShape(**asked["shape"]), asked["options"])))
    else:
        print(table())
