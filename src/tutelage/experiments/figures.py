"""The figures: curves during training, and new knowledge against drift. One colour per objective, everywhere.

Not here: numbers (`results.py`), the page they stand on (`report.py`).
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tutelage.evaluation import Measure, Role, Unit
from tutelage.experiments.results import ExperimentResults, ModelResult, Score
from tutelage.experiments.sentences import level_text
from tutelage.experiments.specification import BASE
from tutelage.files import write_bytes

BASE_COLOUR = "#767676"
OBJECTIVE_COLOURS = {
    "sft": "#D55E00",
    "dft": "#0072B2",
    "sdft": "#009E73",
    "grpo": "#CC79A7",
    "dpo": "#56B4E9",
    "orpo": "#E69F00",
}
"""Okabe and Ito's palette: told apart with every kind of colour vision. Markers differ too."""
OBJECTIVE_MARKERS = {"sft": "o", "dft": "s", "sdft": "^", "grpo": "P", "dpo": "v", "orpo": "X"}
BASE_MARKER = "D"
LINE_STYLES = ("-", "--", ":", "-.")
"""Of several runs with one objective."""

TRAJECTORIES_FILE = "training_trajectories.png"
TRADEOFF_FILE = "tradeoff.png"
STAGES_FILE = "stages.png"
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
    Panel("reward", "Mean reward of the rollouts", "the reward's own unit"),
    Panel("rewards/margins", "Margin of chosen over rejected", "implicit reward, nats times β"),
)
DIRECTION = "cos_sim/"
"""What the metrics of named directions begin with."""
ON_THE_WAY = "score/"
"""What curves of a measure over a run's checkpoints begin with."""


def is_shown(metric: str) -> bool:
    """Whether a curve of this metric is drawn where a run has one."""
    return metric.startswith(DIRECTION) or any(panel.metric == metric for panel in PANELS)


def panels_of(results: ExperimentResults) -> list[Panel]:
    """The panels for which a run has a curve; one for each named direction."""
    metrics = dict.fromkeys(name for run in results.runs for seed in run.finished for name in seed.curves)
    directions = [
        Panel(name, f"Cosine to '{name.removeprefix(DIRECTION)}'", "cos(mean hidden state, direction)")
        for name in metrics
        if name.startswith(DIRECTION)
    ]
    scores = [
        Panel(f"{ON_THE_WAY}{measure.name}", _cap(measure.title), measure.unit.value, "step 0 is the base model")
        for measure in results.measures
    ]
    return [panel for panel in (*PANELS, *directions, *scores) if panel.metric in metrics]


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]


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
    """`training_trajectories.png` and `tradeoff.png`; with stages `stages.png` too. Raises OutputError."""
    if results.stages:
        write_bytes(folder / STAGES_FILE, png(stages_figure(results, LIGHT)))
    write_bytes(folder / TRAJECTORIES_FILE, png(trajectories_figure(results, LIGHT)))
    write_bytes(folder / TRADEOFF_FILE, png(tradeoff_figure(results, LIGHT)))


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DOTS_PER_INCH, facecolor=figure.get_facecolor())
    return content.getvalue()


def trajectories_figure(results: ExperimentResults, theme: Theme) -> Figure:
    """All panels side by side; the last place has the legend."""
    panels = panels_of(results)
    rows = max(1, -(-(len(panels) + 1) // 3))
    figure = _figure((12.0, 3.3 * rows), theme)
    seeds = "seed" if len(results.seeds) == 1 else "seeds"
    shown = ", ".join(map(str, results.seeds))
    figure.suptitle(f"Training trajectories: {results.model}, {seeds} {shown}", color=theme.ink, fontsize=13)
    places: list[Any] = list(figure.subplots(rows, 3, squeeze=False).flat)
    for panel, place in zip(panels, places, strict=False):
        _draw_panel(place, panel, results.runs, theme)
    for place in places[len(panels) :]:
        place.axis("off")
    _add_legend(places[len(panels)], results.runs, theme, loc="center", fontsize=12)
    if len(results.seeds) > 1:
        places[len(panels)].set_title("lines: mean over seeds; bands: lowest to highest", fontsize=8, color=theme.ink)
    return figure


def panel_figure(results: ExperimentResults, panel: Panel, theme: Theme) -> Figure:
    """One panel alone, to be read on a phone."""
    figure = _figure((4.6, 3.2), theme)
    axes = figure.subplots()
    _draw_panel(axes, panel, results.runs, theme)
    _add_legend(axes, results.runs, theme, loc="best", fontsize=8)
    return figure


def tradeoff_figure(results: ExperimentResults, theme: Theme) -> Figure:
    """New knowledge against what was kept of the prior capability, and against KL to base, with intervals."""
    known = results.base.scores
    task = [measure for measure in results.of_role(Role.TASK) if measure.higher_is_better]
    task = [measure for measure in task if measure.unit is task[0].unit][:2]
    prior = [measure for measure in results.of_role(Role.PRIOR) if measure.name in known][:1]
    across = [*prior, results.measure("kl_vs_base")]
    figure = _figure((5.6 * len(across) + 1.0, 4.8), theme)
    for axes, measure in zip(figure.subplots(1, len(across), squeeze=False).flat, across, strict=True):
        _draw_tradeoff(axes, results, task, measure, theme)
    kinds = [f"filled: {task[0].title}", *(f"hollow: {measure.title}" for measure in task[1:])] if task else []
    level = level_text(results.base.scores["kl_vs_base"].interval)
    figure.text(0.99, 0.01, "; ".join([*kinds, f"bars: {level} intervals"]), ha="right", color=theme.ink, fontsize=8)
    return figure


def _draw_tradeoff(axes: Any, results: ExperimentResults, task: list[Measure], across: Measure, theme: Theme) -> None:
    """The first task measure filled, the second hollow; better is up, and right of the base or left at its 0."""
    drawn = [model for model in (results.base, *results.runs) if across.name in model.scores]
    places: dict[str, tuple[float, float]] = {}
    for model in drawn:
        for number, measure in reversed(list(enumerate(task))):
            if measure.name not in model.scores:
                continue
            # The hollow marker is the larger one: where both are in the same place, both are seen.
            filling, size = (theme.paper, 12.0) if number > 0 else (colour_of(model), 8.0)
            _draw_point(axes, model, model.scores[across.name], model.scores[measure.name], filling, size)
            places[model.name] = (model.scores[across.name].mean, model.scores[measure.name].mean)
    if across.role is Role.DRIFT:
        widest = max((model.scores[across.name].interval.high for model in drawn), default=0.0)
        scale = widest if widest > 0 else 1.0
        axes.set_xlim(-0.06 * scale, 1.12 * scale)
        axes.set_title("New knowledge against drift: up and left is better", color=theme.ink, fontsize=11)
        axes.set_xlabel(f"{across.title} on everyday prompts ({across.unit.value})")
    else:
        base = results.base.scores[across.name].mean
        axes.axvline(base, color=BASE_COLOUR, linewidth=1.0, linestyle=":", zorder=1)
        axes.set_title("New knowledge against prior: up and right is better", color=theme.ink, fontsize=11)
        axes.set_xlabel(f"{across.title} ({across.unit.value}; dotted: base)")
        axes.margins(x=0.18)
    if task:
        axes.set_ylabel(f"new knowledge ({task[0].unit.value})")
        if task[0].unit is Unit.SHARE:
            axes.set_ylim(-0.06, 1.08)
    _place_labels(axes, places, theme)
    _style(axes, theme)


def stages_figure(results: ExperimentResults, theme: Theme) -> Figure:
    """Every task and prior measure, and the KL, after each stage: what a stage teaches and what it takes away."""
    measures = [*results.of_role(Role.TASK), *results.of_role(Role.PRIOR), results.measure("kl_vs_base")]
    columns = min(3, len(measures))
    rows = -(-len(measures) // columns)
    figure = _figure((4.2 * columns, 3.4 * rows), theme)
    places: list[Any] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, measure in zip(places, measures, strict=False):
        for run, style in _styled(results.runs):
            scores = [results.base.scores, *(run.after(stage) for stage in results.stages)]
            shown = [(place, each[measure.name]) for place, each in enumerate(scores) if measure.name in each]
            axes.errorbar(
                [place for place, _ in shown],
                [score.mean for _, score in shown],
                yerr=[[_reach(score)[side][0] for _, score in shown] for side in (0, 1)],
                color=colour_of(run),
                marker=marker_of(run),
                linestyle=style,
                linewidth=1.8,
                elinewidth=1.0,
                label=run.name,
            )
        axes.set_title(_cap(measure.title), color=theme.ink, fontsize=11)
        axes.set_ylabel(measure.unit.value, fontsize=8)
        axes.set_xticks(range(len(results.stages) + 1), [BASE, *results.stages])
        axes.set_xlabel("after stage", fontsize=8)
        if measure.unit is Unit.SHARE:
            axes.set_ylim(-0.05, 1.05)
        _style(axes, theme)
    for axes in places[len(measures) :]:
        axes.axis("off")
    _add_legend(places[0], results.runs, theme, loc="best", fontsize=8)
    return figure


def _figure(size: tuple[float, float], theme: Theme) -> Figure:
    figure = Figure(figsize=size, layout="constrained", facecolor=theme.paper)
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    return figure


def _draw_panel(axes: Any, panel: Panel, runs: Sequence[ModelResult], theme: Theme) -> None:
    shown = [(run, style, [seed.curves.get(panel.metric, []) for seed in run.finished]) for run, style in _styled(runs)]
    last = max((curve[-1][0] for _, _, curves in shown for curve in curves if curve), default=1)
    for run, style, curves in shown:
        by_step: dict[int, list[float]] = {}
        for curve in curves:
            for step, value in curve:
                by_step.setdefault(step, []).append(value)
        steps = sorted(by_step)
        means = [sum(by_step[step]) / len(by_step[step]) for step in steps]
        few = len(steps) <= 12
        axes.plot(
            steps,
            means,
            color=colour_of(run),
            label=run.name,
            linewidth=1.8,
            linestyle=style,
            marker=marker_of(run) if few else None,
            markersize=5,
        )
        if len(curves) > 1:
            lows, highs = [min(by_step[step]) for step in steps], [max(by_step[step]) for step in steps]
            axes.fill_between(steps, lows, highs, color=colour_of(run), alpha=0.18, linewidth=0)
        if not few:
            axes.plot(steps[-1:], means[-1:], color=colour_of(run), marker=marker_of(run), markersize=6)
    axes.set_title(panel.title, color=theme.ink, fontsize=11)
    axes.set_xlabel("optimizer step" + (f"\n{panel.remark}" if panel.remark else ""), fontsize=8)
    axes.set_ylabel(panel.unit, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.03 * last, 1.03 * last)
    values = [value for _, _, curves in shown for curve in curves for _, value in curve]
    lowest, highest = min(values, default=0.0), max(values, default=0.0)
    axes.set_ylim(1.08 * lowest if lowest < 0 else 0.0, 1.08 * highest if highest > 0 else 1.0 if lowest >= 0 else 0.0)
    _style(axes, theme)


def _styled(runs: Sequence[ModelResult]) -> list[tuple[ModelResult, Any]]:
    """Every run with a line style: the colour is the objective's, so runs of one objective differ in style."""
    seen: dict[str | None, int] = {}
    styled: list[tuple[ModelResult, Any]] = []
    for run in runs:
        number = seen.get(run.objective, 0)
        seen[run.objective] = number + 1
        styled.append((run, LINE_STYLES[number % len(LINE_STYLES)]))
    return styled


def _add_legend(axes: Any, runs: Sequence[ModelResult], theme: Theme, *, loc: str, fontsize: float) -> None:
    handles = [
        Line2D([], [], color=colour_of(run), marker=marker_of(run), linewidth=1.8, linestyle=style, label=run.name)
        for run, style in _styled(runs)
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


def _place_labels(axes: Any, places: Mapping[str, tuple[float, float]], theme: Theme) -> None:
    """Names beside the filled markers, each lower than the one it would otherwise cover."""
    x_span, y_span = (high - low for low, high in (axes.get_xlim(), axes.get_ylim()))
    taken: list[tuple[float, float]] = []
    for name, (x, y) in sorted(places.items(), key=lambda place: -place[1][1]):
        offset = 8
        while any(abs(x - u) < 0.16 * x_span and abs(y + offset / 270 * y_span - v) < 0.045 * y_span for u, v in taken):
            offset -= 15
        taken.append((x, y + offset / 270 * y_span))
        axes.annotate(
            name, (x, y), xytext=(9, offset), textcoords="offset points", color=theme.ink, fontsize=11, zorder=4
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
