"""The figures as files, and those of scores: what was learned against what it cost, and what each stage did.

Not here: curves over the steps (`curves.py`), colours (`figure_style.py`), the page they stand on (`report.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tutelage.evaluation import Measure, Role, Unit
from tutelage.experiments.curves import trajectories_figure
from tutelage.experiments.figure_style import (
    BASE_COLOUR,
    LIGHT,
    Theme,
    add_legend,
    capitalised,
    colour_of,
    marker_of,
    new_figure,
    pdf,
    png,
    style_axes,
    styled,
)
from tutelage.experiments.results import ExperimentResults, ModelResult, Score
from tutelage.experiments.sentences import joined, level_text
from tutelage.experiments.specification import BASE
from tutelage.files import write_bytes


def write_figures(results: ExperimentResults, folder: Path) -> None:
    """`training_trajectories` and `tradeoff`, with stages `stages` too, each as `.png` and, for print, `.pdf`.

    Raises OutputError.
    """
    figures = {"training_trajectories": trajectories_figure, "tradeoff": tradeoff_figure}
    for name, draw in (figures | ({"stages": stages_figure} if results.stages else {})).items():
        figure = draw(results, LIGHT)
        write_bytes(folder / f"{name}.png", png(figure))
        write_bytes(folder / f"{name}.pdf", pdf(figure))


def tradeoff_figure(results: ExperimentResults, theme: Theme) -> Figure:
    """New knowledge against what was kept of the prior capability, and against KL to base, with intervals."""
    known = results.base.scores
    learned = _learned(results)
    prior = [measure for measure in results.of_role(Role.PRIOR) if measure.name in known][:1]
    across = [*prior, results.measure("kl_vs_base")]
    figure = new_figure((5.6 * len(across) + 1.0, 4.8), theme)
    for axes, measure in zip(figure.subplots(1, len(across), squeeze=False).flat, across, strict=True):
        _draw_tradeoff(axes, results, learned, measure, theme)
    kinds = [f"{filling}: {one.title}" for filling, one in zip(("filled", "hollow"), learned, strict=False)]
    level = level_text(results.base.scores["kl_vs_base"].interval)
    figure.text(0.99, 0.01, "; ".join([*kinds, f"bars: {level} intervals"]), ha="right", color=theme.ink, fontsize=8)
    return figure


@dataclass(frozen=True)
class _Learned:
    """What the vertical axis shows, as one measure or several together have it. kind: `new knowledge`, or what judges
    said of the answers where nothing else was asked. scores: by model."""

    kind: str
    title: str
    unit: Unit
    higher_is_better: bool | None
    scores: Mapping[str, Score]


def _learned(results: ExperimentResults) -> list[_Learned]:
    """One or two measures of the task, each for itself; of three and more the mean over all their items.

    Where no task was asked it is what judges said: of answers that are better or worse, else of the first prompt.
    """
    task, judged = results.of_role(Role.TASK), results.of_role(Role.FREEFORM)
    good = [measure for measure in task or judged if measure.higher_is_better] or ([] if task else judged[:1])
    shown = [measure for measure in good if measure.unit is good[0].unit]
    groups = [[measure] for measure in shown] if len(shown) < 3 else [shown]
    return [
        _Learned(
            "new knowledge" if group[0].role is Role.TASK else "judged answers",
            joined([measure.title for measure in group]),
            group[0].unit,
            group[0].higher_is_better,
            _together(results, group),
        )
        for group in groups
    ]


def _together(results: ExperimentResults, measures: list[Measure]) -> dict[str, Score]:
    """The items of several measures side by side, of every model that has them all."""
    names = [measure.name for measure in measures]
    return {
        model.name: Score(
            tuple(
                tuple(value for name in names for value in model.scores[name].items[seed])
                for seed in range(len(model.finished))
            )
        )
        for model in (results.base, *results.runs)
        if all(name in model.scores for name in names)
    }


def _draw_tradeoff(
    axes: Any, results: ExperimentResults, learned: list[_Learned], across: Measure, theme: Theme
) -> None:
    """The first kind of knowledge filled, the second hollow; better is up, and right of the base or left at its 0."""
    drawn = [model for model in (results.base, *results.runs) if across.name in model.scores]
    places: dict[str, tuple[float, float]] = {}
    for model in drawn:
        for number, one in reversed(list(enumerate(learned))):
            if model.name not in one.scores:
                continue
            # The hollow marker is the larger one: where both are in the same place, both are seen.
            filling, size = (theme.paper, 12.0) if number > 0 else (colour_of(model), 8.0)
            _draw_point(axes, model, model.scores[across.name], one.scores[model.name], filling, size)
            places[model.name] = (model.scores[across.name].mean, one.scores[model.name].mean)
    kind = capitalised(learned[0].kind) if learned else "No measure of a task"
    better = bool(learned and learned[0].higher_is_better)
    if across.role is Role.DRIFT:
        widest = max((model.scores[across.name].interval.high for model in drawn), default=0.0)
        scale = widest if widest > 0 else 1.0
        axes.set_xlim(-0.06 * scale, 1.12 * scale)
        axes.set_title(f"{kind} against drift{': up and left is better' * better}", color=theme.ink, fontsize=11)
        axes.set_xlabel(f"{across.title} on everyday prompts ({across.unit.value})")
    else:
        base = results.base.scores[across.name].mean
        axes.axvline(base, color=BASE_COLOUR, linewidth=1.0, linestyle=":", zorder=1)
        axes.set_title(f"{kind} against prior{': up and right is better' * better}", color=theme.ink, fontsize=11)
        axes.set_xlabel(f"{across.title} ({across.unit.value}; dotted: base)")
        axes.margins(x=0.18)
    if learned:
        axes.set_ylabel(f"{learned[0].kind} ({learned[0].unit.value})")
        if learned[0].unit is Unit.SHARE:
            axes.set_ylim(-0.06, 1.08)
    _place_labels(axes, places, theme)
    style_axes(axes, theme)


def stages_figure(results: ExperimentResults, theme: Theme) -> Figure:
    """Every task and prior measure, and the KL, after each stage: what a stage teaches and what it takes away."""
    measures = [*results.of_role(Role.TASK), *results.of_role(Role.PRIOR), results.measure("kl_vs_base")]
    columns = min(3, len(measures))
    rows = -(-len(measures) // columns)
    figure = new_figure((4.2 * columns, 3.4 * rows), theme)
    places: list[Any] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, measure in zip(places, measures, strict=False):
        for run, style in styled(results.runs):
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
        axes.set_title(capitalised(measure.title), color=theme.ink, fontsize=11)
        axes.set_ylabel(measure.unit.value, fontsize=8)
        axes.set_xticks(range(len(results.stages) + 1), [BASE, *results.stages])
        axes.set_xlabel("after stage", fontsize=8)
        if measure.unit is Unit.SHARE:
            axes.set_ylim(-0.05, 1.05)
        style_axes(axes, theme)
    for axes in places[len(measures) :]:
        axes.axis("off")
    add_legend(places[0], results.runs, theme, loc="best", fontsize=8)
    return figure


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
