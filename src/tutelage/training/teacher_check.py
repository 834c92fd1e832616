"""Before step 1 of sdft: does the demonstration help this model at all? If not, there is no teacher to learn from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from tutelage.config.objectives import BUILT_IN_DEMO_TEMPLATE
from tutelage.data.rows import DistillationRow
from tutelage.events import Tag

if TYPE_CHECKING:
    from tutelage.training.sdft_trainer import SdftTrainer

REPEATED_AT_LEAST = 0.1
"""Share of the answers that a model must give when its prompt holds them. Log-probabilities rise all the same where it
gives none, since each token is scored after the right ones before it."""

REMEDY = "reword sdft_demo_template, give worked demonstrations, or use a larger model or sft"


def check_demonstrations(trainer: "SdftTrainer", rows: Sequence[DistillationRow], console: Console) -> None:
    """Gold answers with and without the demonstration, on up to `sdft_check_rows` rows spread over the file: mean
    log-prob per token, and how many of them greedy decoding would give. An event of tag `check`, and a warning if the
    demonstration does not help, or holds the answer and this is not said, where the template does not ask for other
    words, as the built-in one does."""
    limit = trainer.sdft.check_rows
    if limit == 0:
        return
    chosen = [rows[index] for index in range(0, len(rows), max(1, -(-len(rows) // limit)))]
    gain = trainer.demonstration_gain(chosen)
    with_demonstration, without = gain.with_demonstration / gain.tokens, gain.without / gain.tokens
    if trainer.is_world_process_zero():
        values = {
            "logp_with_demonstration": with_demonstration,
            "logp_without": without,
            "greedy_with_demonstration": sum(gain.greedy_with),
            "greedy_without": sum(gain.greedy_without),
            "rows": len(chosen),
        }
        trainer.events.write(0, Tag.CHECK, values)
    text = (
        f"gold answers: log-prob per token {without:.2f} without the demonstration, {with_demonstration:.2f} with it; "
        f"greedy decoding gives {sum(gain.greedy_without)} and {sum(gain.greedy_with)} of {len(chosen)}"
    )
    shown = [
        repeated
        for row, repeated in zip(chosen, gain.greedy_with, strict=True)
        if row.gold.strip() in row.demonstration_text
    ]
    asks_for_other_words = trainer.sdft.demo_template == BUILT_IN_DEMO_TEMPLATE
    if with_demonstration <= without:
        fault = "the demonstration does not help this model, so there is little it can teach itself"
    elif sum(shown) < REPEATED_AT_LEAST * len(shown) and not asks_for_other_words:
        fault = (
            f"shown the answer itself, this model gives it word for word in {sum(shown)} of {len(shown)} rows; unless "
            "sdft_demo_template asks for other words, most of what it would teach itself is something else"
        )
    else:
        console.print(text, highlight=False)
        return
    message = f"{text}: {fault}; {REMEDY}"
    console.print(f"warning: {message}", highlight=False)
    trainer.warn(message)
