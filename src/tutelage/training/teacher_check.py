"""Before step 1 of sdft: does the demonstration help this model at all? If not, there is no teacher to learn from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from tutelage.data.rows import DistillationRow
from tutelage.events import Tag

if TYPE_CHECKING:
    from tutelage.training.sdft_trainer import SdftTrainer


def check_demonstrations(trainer: "SdftTrainer", rows: Sequence[DistillationRow], console: Console) -> None:
    """Mean log-prob per token of the gold answer with and without the demonstration, on up to `sdft_check_rows`
    rows spread over the file; an event of tag `check`, and a warning if the demonstration does not help."""
    limit = trainer.sdft.check_rows
    if limit == 0:
        return
    chosen = [rows[index] for index in range(0, len(rows), max(1, -(-len(rows) // limit)))]
    gain = trainer.demonstration_gain(chosen)
    with_demonstration, without = gain.with_demonstration / gain.tokens, gain.without / gain.tokens
    if trainer.is_world_process_zero():
        values = {"logp_with_demonstration": with_demonstration, "logp_without": without, "rows": len(chosen)}
        trainer.events.write(0, Tag.CHECK, values)
    text = f"gold answers: log-prob per token {without:.2f} without the demonstration, {with_demonstration:.2f} with it"
    if with_demonstration > without:
        console.print(f"{text} ({len(chosen)} rows)", highlight=False)
        return
    message = (
        f"{text}: the demonstration does not help this model, so there is little it can teach itself; "
        "reword sdft_demo_template, give worked demonstrations, or use a larger model or sft"
    )
    console.print(f"warning: {message}", highlight=False)
    trainer.warn(message)
