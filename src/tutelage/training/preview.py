"""What `--dry-run` prints: the resolved config, the size of an epoch, and the first example as it will be trained."""

import math
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from tutelage.config import TrainingConfig
from tutelage.data.rows import DistillationRow, TokenRow
from tutelage.models.loading import require_gpu_if_asked
from tutelage.training.inputs import TrainingInputs, prepare_inputs
from tutelage.training.optimization import check_optimization
from tutelage.training.run import new_run_folder


def preview(config: TrainingConfig, console: Console) -> None:
    """Validate everything a run would, then show it. Loads the tokenizer but no weights; writes no run."""
    new_run_folder(config)
    check_optimization(config)
    require_gpu_if_asked(config)
    inputs = prepare_inputs(config)
    console.print("[bold]Config[/bold]")
    console.print(Text(yaml.safe_dump(config.flat(), sort_keys=False, allow_unicode=True)))
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    steps = config.max_steps or math.ceil(math.ceil(len(inputs.train_items) / per_step) * config.epochs)
    unit = "packs" if config.packs else "rows"
    console.print(
        f"[bold]Data[/bold]\n{len(inputs.train_items)} {unit}, {inputs.tokens_per_epoch} tokens per epoch, "
        f"{per_step} {unit} per optimizer step and process, {steps} steps",
        highlight=False,
    )
    for warning in inputs.warnings:
        console.print(f"warning: {escape(warning)}", highlight=False)
    first = inputs.train_items[0]
    if isinstance(first, DistillationRow):
        _show_distillation(first, inputs, console)
    else:
        _show_tokens(first if isinstance(first, TokenRow) else first[0], inputs, console)


def _show_tokens(row: TokenRow, inputs: TrainingInputs, console: Console) -> None:
    console.print(f"[bold]First example[/bold] ({escape(row.place)}); trained tokens are marked «so»")
    text = Text()
    start = 0
    for end in range(1, len(row.input_ids) + 1):
        trained = row.labels[start] != -100
        if end == len(row.input_ids) or (row.labels[end] != -100) != trained:
            piece = _decode(inputs, row.input_ids[start:end])
            text.append(f"«{piece}»" if trained else piece, style="green" if trained else "dim")
            start = end
    console.print(text, soft_wrap=True)


def _show_distillation(row: DistillationRow, inputs: TrainingInputs, console: Console) -> None:
    for title, ids in (("The student sees", row.prompt_ids), ("The teacher sees", row.teacher_prompt_ids)):
        console.print(f"[bold]{title}[/bold] ({escape(row.place)}); «…» is where the trained rollout goes")
        console.print(Text(_decode(inputs, ids), style="dim") + Text("«…»", style="green"), soft_wrap=True)
    console.print("[bold]Gold answer[/bold] (for evaluation and the off-policy share)")
    console.print(Text(f"«{_decode(inputs, row.gold_ids)}»", style="green"), soft_wrap=True)


def _decode(inputs: TrainingInputs, ids: list[int]) -> str:
    tokenizer: Any = inputs.tokenizer
    return tokenizer.decode(ids)
