"""What `--dry-run` prints: the resolved config, the size of an epoch, and the first example as it will be trained."""

from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.text import Text
from transformers import AutoConfig

from tutelage.config import TrainingConfig
from tutelage.config.memory import GB, ModelShape, memory_of
from tutelage.data.rows import DistillationRow, PreferenceRow, PromptRow, TokenRow
from tutelage.errors import ConfigError
from tutelage.models.loading import base_of
from tutelage.training.checks import checked_inputs
from tutelage.training.inputs import TrainingInputs
from tutelage.training.reward_check import gold_text
from tutelage.training.run import new_run_folder
from tutelage.training.size import size_of


def preview(config: TrainingConfig, console: Console) -> None:
    """Validate everything a run would, then show it. Loads the tokenizer but no weights; writes no run."""
    new_run_folder(config)
    inputs = checked_inputs(config)
    console.print("[bold]Config[/bold]")
    console.print(Text(yaml.safe_dump(config.flat(), sort_keys=False, allow_unicode=True)))
    size = size_of(config, inputs)
    unit = "packs" if config.packs else "rows"
    share = f"{size.per_step} {unit}" if size.answers is None else f"{size.answers} answers to {size.per_step} prompts"
    console.print(
        f"[bold]Data[/bold]\n{size.units} {unit}, {inputs.tokens_per_epoch} tokens per epoch, "
        f"{share} per optimizer step and process, {size.steps} steps",
        highlight=False,
    )
    _show_memory(config, inputs, console)
    if inputs.scores is not None and inputs.scores.of_gold is not None:
        console.print(gold_text(inputs.scores.of_gold), highlight=False)
    for warning in inputs.warnings:
        console.print(f"warning: {escape(warning)}", highlight=False)
    first = inputs.train_items[0]
    if isinstance(first, DistillationRow):
        _show_distillation(first, inputs, console)
    elif isinstance(first, PromptRow):
        _show_prompt(first, inputs, console)
    elif isinstance(first, PreferenceRow):
        _show_preference(first, inputs, console)
    else:
        _show_tokens(first if isinstance(first, TokenRow) else first[0], inputs, console)


def _show_memory(config: TrainingConfig, inputs: TrainingInputs, console: Console) -> None:
    """Nothing for a model whose sizes are not those of a Llama."""
    try:
        sizes = AutoConfig.from_pretrained(base_of(inputs.source)).get_text_config().to_dict()
        memory = memory_of(config, ModelShape.of(sizes))
    except (ConfigError, OSError, ValueError):
        return
    parts = ("weights", "optimizer", "teacher", "gradients", "activations", "head", "rollouts")
    sized = ((name, getattr(memory, name) / GB) for name in parts)
    console.print(
        f"[bold]Memory[/bold]\nabout {memory.peak / GB:.2g} GB on one GPU with rows of {config.max_seq_length} tokens: "
        + ", ".join(f"{name} {size:.2g}" for name, size in sized if size),
        highlight=False,
    )


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


def _show_prompt(row: PromptRow, inputs: TrainingInputs, console: Console) -> None:
    console.print(f"[bold]The model sees[/bold] ({escape(row.place)}); «…» is where its answers go")
    console.print(Text(_decode(inputs, row.prompt_ids), style="dim") + Text("«…»", style="green"), soft_wrap=True)
    console.print("[bold]Gold response[/bold] (for the reward)")
    console.print(Text(row.gold), soft_wrap=True)


def _show_preference(row: PreferenceRow, inputs: TrainingInputs, console: Console) -> None:
    console.print(f"[bold]Prompt[/bold] ({escape(row.place)})")
    console.print(Text(_decode(inputs, row.prompt_ids), style="dim"), soft_wrap=True)
    for title, ids, style in (("Chosen", row.chosen_ids, "green"), ("Rejected", row.rejected_ids, "red")):
        console.print(f"[bold]{title}[/bold]")
        console.print(Text(f"«{_decode(inputs, ids)}»", style=style), soft_wrap=True)


def _decode(inputs: TrainingInputs, ids: list[int]) -> str:
    tokenizer: Any = inputs.tokenizer
    return tokenizer.decode(ids)
