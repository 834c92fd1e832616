"""The figures: curves during training, and new knowledge against drift. One colour per objective, everywhere.

Not here: numbers (`results.py`), the page they stand on (`report.py`).
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tutelage.experiments.results import ExperimentResults, ModelResult, Score
from tutelage.experiments.sentences import level_text
from tutelage.experiments.specification import BASE, Unit
from tutelage.files import write_bytes

BASE_COLOUR = "#767676"
OBJECTIVE_COLOURS = {"sft": "#D55E00", "dft": "#0072B2", "sdft": "#009E73"}
"""Okabe and Ito's palette: told apart with every kind of colour vision. Markers differ too."""
OBJECTIVE_MARKERS = {"sft": "o", "dft": "s", "sdft": "^"}
BASE_MARKER = "D"

TRAJECTORIES_FILE = "training_trajectories.png"
TRADEOFF_FILE = "tradeoff.png"
DOTS_PER_INCH = 150


@dataclass(frozen=True)
class Panel:
    """One curve per run over the optimizer steps."""

    metric: str
    title: str
    unit: str
    remark: str = ""


PANELS = (
    Panel("loss", "Loss", "objective's own, nats per token", "each objective has its own: heights do not compare"),
    Panel(
        "nll",
        "NLL of the tokens trained on",
        "nats per token",
        "gold answers; sdft: rollouts, or gold answers off policy",
    ),
    Panel("grad_norm", "Gradient norm", "before clipping"),
    Panel("weight_diff_norm", "Weight drift", "‖θ − θ₀‖ of the trained tensors"),
    Panel("kl_vs_base", "KL to base, everyday prompts", "KL(tuned ‖ base), nats per token"),
)


@dataclass(frozen=True)
class Theme:
    """Colours of paper and ink."""

    paper: str
    ink: str
    grid: str


LIGHT = Theme("#ffffff", "#1d2127", "#dfe3e8")
DARK = Theme("#171a1f", "#e4e7eb", "#353a42")


def colour_of(model: ModelResult) -> str:
    """The colour of a run's objective."""
    return BASE_COLOUR if model.name == BASE else OBJECTIVE_COLOURS.get(model.objective or "", BASE_COLOUR)


def marker_of(model: ModelResult) -> str:
    """The marker of a run's objective."""
    return BASE_MARKER if model.name == BASE else OBJECTIVE_MARKERS.get(model.objective or "", "o")


def write_figures(results: ExperimentResults, folder: Path) -> None:
    """`training_trajectories.png` and `tradeoff.png`. Raises OutputError."""
    write_bytes(folder / TRAJECTORIES_FILE, png(trajectories_figure(results, LIGHT)))
    write_bytes(folder / TRADEOFF_FILE, png(tradeoff_figure(results, LIGHT)))


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DOTS_PER_INCH, facecolor=figure.get_facecolor())
    return content.getvalue()


def trajectories_figure(results: ExperimentResults, theme: Theme) -> Figure:
    """All panels side by side; the last place has the legend."""
    figure = _figure((12.0, 6.6), theme)
    figure.suptitle(f"Training trajectories: {results.model}, seed {results.seed}", color=theme.ink, fontsize=13)
    axes = figure.subplots(2, 3)
    places: list[Any] = list(axes.flat)
    for panel, place in zip(PANELS, places, strict=False):
        _draw_panel(place, panel, results.runs, theme)
    legend_place = places[len(PANELS)]
    legend_place.axis("off")
    _add_legend(legend_place, results.runs, theme, loc="center", fontsize=12)
    return figure


def panel_figure(results: ExperimentResults, panel: Panel, theme: Theme) -> Figure:
    """One panel alone, to be read on a phone."""
    figure = _figure((4.6, 3.2), theme)
    axes = figure.subplots()
    _draw_panel(axes, panel, results.runs, theme)
    _add_legend(axes, results.runs, theme, loc="best", fontsize=8)
    return figure


def tradeoff_figure(results: ExperimentResults, theme: Theme) -> Figure:
    """New knowledge against KL to base, with the intervals of both; up and to the left is better."""
    figure = _figure((7.0, 5.0), theme)
    axes = figure.subplots()
    drift = results.measure("kl_vs_base")
    measures = [results.measure(name) for name in (results.task, results.task_again) if name]
    models = [model for model in results.models if drift.name in model.scores]
    for model in models:
        for number, measure in reversed(list(enumerate(measures))):
            # The hollow marker is the larger one: where both are in the same place, both are seen.
            filling, size = (theme.paper, 12.0) if number > 0 else (colour_of(model), 8.0)
            _draw_point(axes, model, model.scores[drift.name], model.scores[measure.name], filling, size)
    widest = max(model.scores[drift.name].interval.high for model in models)
    scale = widest if widest > 0 else 1.0
    axes.set_xlim(-0.06 * scale, 1.12 * scale)
    if results.measure(results.task).unit is Unit.SHARE:
        axes.set_ylim(-0.06, 1.08)
    _place_labels(axes, models, results, theme)
    axes.set_title("New knowledge against drift: up and to the left is better", color=theme.ink, fontsize=11)
    axes.set_xlabel(f"{drift.title} on everyday prompts ({drift.unit.value})")
    axes.set_ylabel(f"new knowledge ({measures[0].unit.value})")
    kinds = ["filled: " + measures[0].title, *(f"hollow: {measure.title}" for measure in measures[1:])]
    level = level_text(models[0].scores[drift.name].interval)
    figure.text(0.99, 0.01, f"{'; '.join(kinds)}; bars: {level} intervals", ha="right", color=theme.ink, fontsize=8)
    _style(axes, theme)
    return figure


def _figure(size: tuple[float, float], theme: Theme) -> Figure:
    figure = Figure(figsize=size, layout="constrained", facecolor=theme.paper)
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    return figure


def _draw_panel(axes: Any, panel: Panel, runs: Sequence[ModelResult], theme: Theme) -> None:
    last = max((curve[-1][0] for run in runs for curve in run.curves.values() if curve), default=1)
    for run in runs:
        curve = run.curves.get(panel.metric, [])
        steps, values = [step for step, _ in curve], [value for _, value in curve]
        few = len(curve) <= 12
        axes.plot(
            steps,
            values,
            color=colour_of(run),
            label=run.name,
            linewidth=1.8,
            marker=marker_of(run) if few else None,
            markersize=5,
        )
        if not few:
            axes.plot(steps[-1:], values[-1:], color=colour_of(run), marker=marker_of(run), markersize=6)
    axes.set_title(panel.title, color=theme.ink, fontsize=11)
    axes.set_xlabel("optimizer step" + (f"\n{panel.remark}" if panel.remark else ""), fontsize=8)
    axes.set_ylabel(panel.unit, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.03 * last, 1.03 * last)
    highest = max((value for run in runs for _, value in run.curves.get(panel.metric, [])), default=0.0)
    axes.set_ylim(0.0, 1.08 * highest if highest > 0 else 1.0)
    _style(axes, theme)


def _add_legend(axes: Any, runs: Sequence[ModelResult], theme: Theme, *, loc: str, fontsize: float) -> None:
    handles = [
        Line2D([], [], color=colour_of(run), marker=marker_of(run), linewidth=1.8, label=run.name) for run in runs
    ]
    axes.legend(handles=handles, loc=loc, frameon=False, fontsize=fontsize, labelcolor=theme.ink)


def _draw_point(axes: Any, model: ModelResult, drift: Score, score: Score, filling: str, size: float) -> None:
    colour = colour_of(model)
    axes.errorbar(
        [drift.mean],
        [score.mean],
        xerr=_reach(drift),
        yerr=_reach(score),
        color=colour,
        marker=marker_of(model),
        markersize=size,
        markerfacecolor=filling,
        markeredgecolor=colour,
        markeredgewidth=1.8,
        elinewidth=1.0,
        alpha=0.95,
        clip_on=False,
        zorder=3,
    )


def _reach(score: Score) -> list[list[float]]:
    """Lengths of the error bars; rounding may leave the mean a hair outside."""
    interval = score.interval
    return [[max(0.0, interval.mean - interval.low)], [max(0.0, interval.high - interval.mean)]]


def _place_labels(axes: Any, models: list[ModelResult], results: ExperimentResults, theme: Theme) -> None:
    """Names beside the filled markers, each lower than the one it would otherwise cover."""
    x_span, y_span = (high - low for low, high in (axes.get_xlim(), axes.get_ylim()))
    taken: list[tuple[float, float]] = []
    for model in sorted(models, key=lambda model: -model.scores[results.task].mean):
        x, y = model.scores["kl_vs_base"].mean, model.scores[results.task].mean
        offset = 8
        while any(abs(x - u) < 0.13 * x_span and abs(y + offset / 280 * y_span - v) < 0.045 * y_span for u, v in taken):
            offset -= 15
        taken.append((x, y + offset / 280 * y_span))
        axes.annotate(
            model.name, (x, y), xytext=(9, offset), textcoords="offset points", color=theme.ink, fontsize=11, zorder=4
        )


def _style(axes: Any, theme: Theme) -> None:
    axes.set_facecolor(theme.paper)
    axes.grid(visible=True, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, labelsize=8)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.ink)
