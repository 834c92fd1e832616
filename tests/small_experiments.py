"""A small experiment as a YAML file with its data."""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.small_runs import ROWS, save_tiny_model, write_rows

TASK = {"kind": "generate", "file": "test.jsonl", "scorer": "exact_match", "max_new_tokens": 4}


def content(folder: Path, **changes: Any) -> dict[str, Any]:
    write_rows(folder / "rows.jsonl")
    questions = [{"prompt": question, "target": answer} for question, answer in ROWS]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions), encoding="utf-8")
    return {
        "name": "small",
        "base": {
            "model": str(save_tiny_model(folder / "tiny")),
            "training_file": "rows.jsonl",
            "packing": False,
            "max_steps": 1,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "merge_before_push": False,
        },
        "runs": {"sft": {"loss": "sft"}, "dft": {"loss": "dft", "learning_rate": 1e-3}},
        "seeds": [4, 5],
        "evaluate": {
            "task": [{"kind": "generate", "file": "test.jsonl", "scorer": "exact_match", "max_new_tokens": 4}]
        },
        "drift": {"max_new_tokens": 4},
    } | changes


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(content(folder, **changes), sort_keys=False), encoding="utf-8")
    return path
