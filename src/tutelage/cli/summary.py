"""What `demo` and `compare` print at the end: a line a model, and where the report is."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from tutelage.experiments import ExperimentResults

WIDEST_VALUE = len("108 of 120")


def quiet_libraries() -> None:
    """Progress bars and warnings of `transformers` would tear our own lines."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def print_summary(results: "ExperimentResults", output: Path) -> None:
    """A line a model with the measures that fit a terminal: not log-probabilities, and one KL."""
    from rich.table import Table

    from tutelage.evaluation import Unit
    from tutelage.experiments.report import REPORT_FILE
    from tutelage.experiments.sentences import value_text
    from tutelage.experiments.specification import KL_VS_BASE

    shown = [
        measure for measure in results.measures if measure == KL_VS_BASE or measure.unit not in (Unit.LOG_PROB, Unit.KL)
    ]
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for measure in shown:
        table.add_column(measure.title, justify="right", min_width=WIDEST_VALUE)
    for model in [results.base, *results.runs]:
        scores = [(model.scores.get(measure.name), measure) for measure in shown]
        table.add_row(model.name, *(value_text(score, measure) if score else "–" for score, measure in scores))
    for model, seed in results.failed:
        table.add_row(f"{model.name}, seed {seed.seed}" if len(model.seeds) > 1 else model.name, "failed")
    Console(soft_wrap=True).print(table)
    print(f"report: {output / REPORT_FILE}")
