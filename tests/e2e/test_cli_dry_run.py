"""`--dry-run` shows what would be trained, token for token, and writes nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.command_line import Terminal, config_file, files_below
from tutelage.config import TrainingConfig

X_ROW = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "xyz"}]}
Z_ROW = {
    "messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": "z"},
        {"role": "assistant", "content": "y"},
    ],
    "demonstration": "zyx",
}


def dry_run(terminal: Terminal, folder: Path, rows: list[dict[str, Any]], **options: Any) -> str:
    """What it prints, after checking that it wrote nothing and said nothing else."""
    config = config_file(folder, **options)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = files_below(folder)
    done = terminal("train", config, "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert files_below(folder) == before
    return done.out


def test_sft(terminal: Terminal, tmp_path: Path) -> None:
    """Tokens: `<|im_start|>user⏎q<|im_end|>⏎` is 6; `<|im_start|>assistant⏎` is 7 ('assistant' is a·ss·is·tan·t),
    its text 3, `<|im_end|>⏎` 2: 18 for the first row. The second is 6 + 10 + 6 + 10 = 32. Together 50."""
    options = {"max_steps": None, "epochs": 3.0, "per_device_train_batch_size": 1}
    out = dry_run(terminal, tmp_path, [X_ROW, Z_ROW], **options)
    assert out.endswith(
        "Data\n2 rows, 50 tokens per epoch, 1 rows per optimizer step and process, 6 steps\n"
        "Memory\nabout 0.013 GB on one GPU with rows of 2048 tokens: "
        "weights 0.00012, gradients 6.6e-05, activations 0.0048, head 0.0079\n"
        f"First example ({tmp_path / 'rows.jsonl'}:1); trained tokens are marked «so»\n"
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n«xyz<|im_end|>»\n\n"
    )


def test_every_assistant_turn_is_marked(terminal: Terminal, tmp_path: Path) -> None:
    out = dry_run(terminal, tmp_path, [Z_ROW])
    assert out.endswith(
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n«x<|im_end|>»\n"
        "<|im_start|>user\nz<|im_end|>\n<|im_start|>assistant\n«y<|im_end|>»\n\n"
    )


def test_training_on_everything(terminal: Terminal, tmp_path: Path) -> None:
    out = dry_run(terminal, tmp_path, [X_ROW], train_on_responses_only=False)
    assert out.endswith("<|im_start|>«user\nq<|im_end|>\n<|im_start|>assistant\nxyz<|im_end|>\n»\n")


def test_packs(terminal: Terminal, tmp_path: Path) -> None:
    """Three rows of 18 tokens in sequences of 40: two fit into one."""
    out = dry_run(terminal, tmp_path, [X_ROW] * 3, packing=True, max_seq_length=40)
    assert "2 packs, 54 tokens per epoch, 8 packs per optimizer step and process, 2 steps\n" in out
    assert out.endswith("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n«xyz<|im_end|>»\n\n")


def test_sdft_shows_both_views(terminal: Terminal, tmp_path: Path) -> None:
    """Tokens: prompt and gold answer, `<|im_end|>` included. 6 + 7 + 4 = 17 and 6 + 10 + 6 + 7 + 2 = 31."""
    template = "{question}\nLike this: {demonstration}!"
    out = dry_run(terminal, tmp_path, [Z_ROW, X_ROW], loss="sdft", sdft_demo_template=template)
    place = f"({tmp_path / 'rows.jsonl'}:1); «…» is where the trained rollout goes\n"
    before = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nx<|im_end|>\n"
    assert out.endswith(
        "Data\n2 rows, 48 tokens per epoch, 8 rows per optimizer step and process, 2 steps\n"
        "Memory\nabout 0.1 GB on one GPU with rows of 2048 tokens: "
        "weights 0.00012, teacher 7.8e-05, gradients 6.6e-05, activations 0.039, head 0.063, rollouts 0.0021\n"
        f"The student sees {place}{before}<|im_start|>user\nz<|im_end|>\n<|im_start|>assistant\n«…»\n"
        f"The teacher sees {place}{before}"
        "<|im_start|>user\nz\nLike this: zyx!<|im_end|>\n<|im_start|>assistant\n«…»\n"
        "Gold answer (for evaluation and the off-policy share)\n«y<|im_end|>»\n"
    )


@pytest.mark.parametrize(
    ("options", "learning_rate"),
    [
        ({"loss": "dft"}, 1e-4),
        ({"loss": "sdft"}, 1e-4),
        ({"loss": "sdft", "is_peft": False}, 1e-5),
        ({"loss": "sdft", "is_peft": False, "learning_rate": 0.25}, 0.25),
    ],
)
def test_the_resolved_config(terminal: Terminal, tmp_path: Path, options: dict[str, Any], learning_rate: float) -> None:
    """What is printed is a config file again, with every default filled in, and means the same run."""
    out = dry_run(terminal, tmp_path, [X_ROW], **({"learning_rate": None} | options))
    printed = re.fullmatch(r"Config\n(.*?)\n\nData\n.*", out, flags=re.DOTALL)
    assert printed is not None
    resolved = yaml.safe_load(printed[1])
    assert resolved["learning_rate"] == learning_rate
    assert resolved["warmup_steps"] == 0  # given
    assert resolved["save_steps"] == 5000  # a default
    assert ("sdft_ema_alpha" in resolved) is (options["loss"] == "sdft")
    assert TrainingConfig(**resolved).flat() == resolved


def test_text_that_looks_like_markup_is_shown_as_it_is(terminal: Terminal, tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "[bold]:warning:[/bold]"},
            {"role": "assistant", "content": "[/x] \\[y] " + "long " * 60},
        ]
    }
    out = dry_run(terminal, tmp_path, [row], meta={"note": "[red]:smile:[/red] " + "long " * 60})
    assert "note: '[red]:smile:[/red] " in out
    assert "user\n[bold]:warning:[/bold]<|im_end|>" in out
    assert "«[/x] \\[y] " + "long " * 60 + "<|im_end|>»" in out


def test_rows_left_out_are_reported(terminal: Terminal, tmp_path: Path) -> None:
    out = dry_run(terminal, tmp_path, [X_ROW, Z_ROW], max_seq_length=20, on_too_long="drop")
    assert "1 rows, 18 tokens per epoch" in out
    assert f"\nwarning: 1 of 2 rows (50 %) left out: longer than max_seq_length 20:\n  {tmp_path}/rows.jsonl:2" in out
