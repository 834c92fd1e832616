"""Whole training runs on the tiny model, in well under a second each: `small_config` and what they leave."""

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from tests.tiny import tiny_model, tiny_tokenizer
from tutelage import Run, TrainingConfig, train

ROWS = [
    ("What is two and two?", "four"),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Say yes.", "yes"),
    ("Count.", "one two three four five six seven eight"),
    ("Name a colour and say why you like it more than others.", "Blue."),
    ("a", "b c d e f"),
    ("What is two and one?", "Two and one is three, since one more than two is three."),
    ("Who?", "Me."),
]


def write_rows(path: Path, rows: list[tuple[str, str]] | None = None) -> Path:
    """A conversations file, answers of very unequal lengths unless told otherwise."""
    lines = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in (rows or ROWS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def save_tiny_model(folder: Path) -> Path:
    """The tiny model and its tokenizer as a folder."""
    if not folder.exists():
        tokenizer = tiny_tokenizer()
        tiny_model(tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def small_config(folder: Path, name: str, **options: Any) -> TrainingConfig:
    """Plain SGD without clipping: the weights' change is the gradient, which a test can compare."""
    data = folder / "rows.jsonl"
    if not data.exists():
        write_rows(data)
    defaults: dict[str, Any] = {
        "model": str(save_tiny_model(folder / "tiny")),
        "training_file": data,
        "output_dir": folder / name,
        "loss": "sft",
        "packing": False,
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.5,
        "warmup_steps": 0,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "merge_before_push": False,
        "sdft_max_new_tokens": 12,
        "seed": 7,
    }
    return TrainingConfig(**(defaults | options))


def run_small(folder: Path, name: str, **options: Any) -> Run:
    """Train quietly."""
    return train(small_config(folder, name, **options), console=Console(quiet=True))


def trained_weights(run: Run, checkpoint: int | None = None) -> dict[str, Tensor]:
    """The tensors of the exported model or adapter, or of a checkpoint."""
    folder = run.path / f"checkpoint-{checkpoint}" if checkpoint else run.model_path
    return load_file(next(folder.glob("*model.safetensors")))


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest absolute difference between tensors of the same names."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Every tensor of one equals the tensor of that name in the other, bit for bit."""
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different
