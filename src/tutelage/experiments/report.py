"""The page: one HTML file with everything in it. Not here: numbers (`results.py`), sentences, figures.

Text from models and files is escaped by the template engine, whatever it holds.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from tutelage.experiments.figures import (
    DARK,
    LIGHT,
    PANELS,
    Theme,
    colour_of,
    panel_figure,
    png,
    tradeoff_figure,
)
from tutelage.experiments.results import ExperimentResults, ModelResult
from tutelage.experiments.sentences import findings, interval_text, level_text, value_text
from tutelage.experiments.specification import Measure
from tutelage.files import write_text

REPORT_FILE = "report.html"
SAMPLES_SHOWN = 8
"""Items of each evaluation that stand open; the others are one click away."""


@dataclass(frozen=True)
class Cell:
    """One number of the table. value: as in `results.json`."""

    measure: Measure
    value: float
    text: str
    interval: str


@dataclass(frozen=True)
class Row:
    """One model of the table."""

    model: ModelResult
    colour: str
    cells: list[Cell]


@dataclass(frozen=True)
class Answer:
    """What one model answered, and whether that was right."""

    name: str
    text: str
    right: bool


@dataclass(frozen=True)
class Question:
    """One item with the answers side by side."""

    text: str
    target: str
    answers: list[Answer]


@dataclass(frozen=True)
class Picture:
    """A figure for light and dark pages, as data URIs."""

    title: str
    light: str
    dark: str


def write_report(results: ExperimentResults, folder: Path) -> Path:
    """`report.html`. Raises OutputError."""
    path = folder / REPORT_FILE
    write_text(path, report_html(results))
    return path


def report_html(results: ExperimentResults) -> str:
    """The page as text. Every number in it comes from `results`."""
    environment = Environment(
        loader=PackageLoader("tutelage.experiments", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [results.base, *results.runs]
    return environment.get_template(REPORT_FILE).render(
        results=results,
        findings=findings(results),
        rows=[_row(results, model) for model in shown],
        tradeoff=_picture("New knowledge against drift", *(tradeoff_figure(results, theme) for theme in _THEMES)),
        panels=[
            _picture(panel.title, *(panel_figure(results, panel, theme) for theme in _THEMES))
            for panel in PANELS
            if any(run.curves.get(panel.metric) for run in results.runs)
        ],
        evaluations=[(results.measure(name), questions(results, shown, name)) for name in results.base.answers],
        level=level_text(results.base.scores[results.task].interval),
        samples_shown=SAMPLES_SHOWN,
        options=differing_options(results.runs),
        shared=shared_options(results.runs),
        as_json=lambda value: json.dumps(value, ensure_ascii=False),
        minutes=_minutes,
    )


def questions(results: ExperimentResults, models: list[ModelResult], evaluation: str) -> list[Question]:
    """The items of one evaluation in the order of the data, with every model's answer."""
    rows_of = {model.name: model.answers.get(evaluation, []) for model in models}
    asked: list[Question] = []
    for index, row in enumerate(results.base.answers[evaluation]):
        answers = [
            Answer(name, rows[index]["answer"], rows[index]["score"] == 1.0)
            for name, rows in rows_of.items()
            if index < len(rows)
        ]
        target = row["target"] if "target" in row else row["choices"][row["right"]]
        asked.append(Question(row["prompt"][-1]["content"], target, answers))
    return asked


def differing_options(runs: list[ModelResult]) -> dict[str, list[Any]]:
    """Options that are not the same in all runs: name to one value a run, None where a run has no such option."""
    names = list(dict.fromkeys(name for run in runs for name in run.config))
    values = {name: [run.config.get(name) for run in runs] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def shared_options(runs: list[ModelResult]) -> dict[str, Any]:
    """Options that all runs share."""
    differing = differing_options(runs)
    return {name: value for name, value in runs[0].config.items() if name not in differing}


_THEMES: tuple[Theme, Theme] = (LIGHT, DARK)


def _row(results: ExperimentResults, model: ModelResult) -> Row:
    cells = [
        Cell(
            measure,
            model.scores[measure.name].mean,
            value_text(model.scores[measure.name], measure),
            interval_text(model.scores[measure.name].interval, measure),
        )
        for measure in results.measures
    ]
    return Row(model, colour_of(model), cells)


def _picture(title: str, light: Figure, dark: Figure) -> Picture:
    return Picture(title, _data_uri(light), _data_uri(dark))


def _data_uri(figure: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(png(figure)).decode()


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
