"""The page: one HTML file with everything in it. Not here: numbers (`results.py`), sentences, figures.

Text from models and files is escaped by the template engine, whatever it holds.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from tutelage.evaluation import Measure, Unit
from tutelage.experiments.curves import panel_figure, panels_of
from tutelage.experiments.figure_style import DARK, LIGHT, Theme, colour_of, png
from tutelage.experiments.figures import stages_figure, tradeoff_figure
from tutelage.experiments.results import ExperimentResults, ModelResult, Score
from tutelage.experiments.sentences import findings, interval_text, level_text, value_text
from tutelage.files import write_text

REPORT_FILE = "report.html"
SAMPLES_SHOWN = 8
"""Items of each evaluation that stand open; the others are one click away."""


@dataclass(frozen=True)
class Cell:
    """One number of the table. value: as in `results.json`."""

    measure: Measure
    value: float | None
    text: str
    interval: str


@dataclass(frozen=True)
class Row:
    """One model of the table."""

    model: ModelResult
    colour: str
    cells: list[Cell]


@dataclass(frozen=True)
class StageRow:
    """A run after one of its stages."""

    model: ModelResult
    stage: str
    colour: str
    cells: list[Cell]


@dataclass(frozen=True)
class Answer:
    """What one model answered. mark: `right`, `wrong`, or `value`, which `number` then holds. judged: what each judge
    prompt made of it, such as `coherent 80, language spanish`."""

    name: str
    text: str
    mark: str
    number: str
    judged: str


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
        tradeoff=_picture("Trade-off", *(tradeoff_figure(results, theme) for theme in _THEMES)),
        panels=[
            _picture(panel.title, *(panel_figure(results, panel, theme) for theme in _THEMES))
            for panel in panels_of(results)
        ],
        evaluations=[(*_titled(results, name), questions(results, shown, name)) for name in results.base.answers],
        level=level_text(results.base.scores["kl_vs_base"].interval),
        left_out=left_out(shown),
        stages=stage_rows(results),
        stages_picture=_picture("After each stage", *(stages_figure(results, theme) for theme in _THEMES))
        if results.stages
        else None,
        samples_shown=SAMPLES_SHOWN,
        options=differing_options(results.runs),
        shared=shared_options(results.runs),
        otherwise=trained_otherwise(results),
        as_json=lambda value: json.dumps(value, ensure_ascii=False),
        minutes=_minutes,
    )


def questions(results: ExperimentResults, models: list[ModelResult], evaluation: str) -> list[Question]:
    """The items of one evaluation in the order of the data, with every model's answer."""
    rows_of = {model.name: model.answers.get(evaluation, []) for model in models}
    own = _own_measures(results, evaluation)
    marked = bool(own) and own[0].unit in (Unit.SHARE, Unit.SCORE)
    asked: list[Question] = []
    for index, row in enumerate(results.base.answers[evaluation]):
        answers = [
            Answer(name, rows[index]["answer"], *_mark(rows[index], marked), _judged(rows[index]))
            for name, rows in rows_of.items()
            if index < len(rows)
        ]
        target = row.get("target") or (row["choices"][row["right"]] if "choices" in row else "")
        asked.append(Question(row["prompt"][-1]["content"] if row.get("prompt") else "", target, answers))
    return asked


def _mark(row: Mapping[str, Any], marked: bool) -> tuple[str, str]:
    """(class, text): right and wrong have marks if marked, anything else is a number; judgements stand apart."""
    score = row["score"]
    if "judgements" in row:
        return "value", ""
    if marked and score in (0.0, 1.0):
        return ("right" if score else "wrong"), ""
    return "value", "–" if score is None else f"{score:.3g}".replace("-", "−")


def _judged(row: Mapping[str, Any]) -> str:
    parts: list[str] = []
    for name, judgement in row.get("judgements", {}).items():
        value = judgement.get("score", judgement.get("label"))
        text = f"{value:.3g}" if isinstance(value, int | float) else value or "no judgement"
        parts.append(f"{name.replace('_', ' ')}: {text}")
    return ", ".join(parts)


def trained_otherwise(results: ExperimentResults) -> list[tuple[str, str, str]]:
    """(what, its value as JSON, the runs) wherever runs were trained in another environment than the report was made
    in: those that were there already may be from another day, commit or machine."""
    here = _flattened(results.environment)
    runs: dict[tuple[str, str], list[str]] = {}
    for model in results.runs:
        trained_in = [(seed.seed, *one) for seed in model.finished for one in seed.environments.items()]
        for seed, stage, environment in trained_in:
            who = ", ".join([model.name, f"seed {seed}", *([stage] if stage else [])])
            for name, value in _flattened(environment).items():
                if value != here.get(name):
                    runs.setdefault((name, json.dumps(value, ensure_ascii=False)), []).append(who)
    return [(name, value, "; ".join(named)) for (name, value), named in runs.items()]


def _flattened(environment: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: value if isinstance(value, Mapping) else {"": value} for name, value in environment.items()}
    return {f"{name} {key}".strip(): value for name, part in parts.items() for key, value in part.items()}


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
    return Row(model, colour_of(model), [_cell(model.scores, measure) for measure in results.measures])


def _cell(scores: Mapping[str, Score], measure: Measure) -> Cell:
    score = scores.get(measure.name)
    if score is None:
        return Cell(measure, None, "–", "no item has a value in every seed")
    return Cell(measure, score.mean, value_text(score, measure), interval_text(score.interval, measure))


def _titled(results: ExperimentResults, evaluation: str) -> tuple[str, str]:
    """Title and meaning of an evaluation: its measure's; of several, what their titles share up to a colon."""
    own = _own_measures(results, evaluation)
    if not own:
        return evaluation, ""
    if len(own) == 1:
        return own[0].title, own[0].meaning
    parts = own[0].title.split(": ")
    starts = (": ".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
    shared = (start for start in starts if all(measure.title.startswith(f"{start}: ") for measure in own))
    return next(shared, evaluation), own[0].meaning


def _own_measures(results: ExperimentResults, evaluation: str) -> list[Measure]:
    """The measure that has the evaluation's name; where none has, those of its parts."""
    own = [measure for measure in results.measures if measure.name == evaluation]
    return own or [measure for measure in results.measures if measure.name.startswith(f"{evaluation}.")]


def stage_rows(results: ExperimentResults) -> list[StageRow]:
    """The matrix: a row a run and stage, with every measure of the table."""
    return [
        StageRow(run, stage, colour_of(run), [_cell(run.after(stage), measure) for measure in results.measures])
        for run in results.runs
        for stage in results.stages
    ]


def left_out(models: list[ModelResult]) -> list[tuple[str, str, int]]:
    """(model and seed, what, how often) of everything that evaluations had to leave out."""
    return [
        (f"{model.name}, seed {seed.seed}" if len(model.seeds) > 1 else model.name, f"{evaluation}: {what}", count)
        for model in models
        for seed in model.finished
        for evaluation, counts in seed.failed.items()
        for what, count in counts.items()
    ]


def _picture(title: str, light: Figure, dark: Figure) -> Picture:
    return Picture(title, _data_uri(light), _data_uri(dark))


def _data_uri(figure: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(png(figure)).decode()


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
