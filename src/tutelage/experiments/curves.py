"""Curves over the optimizer steps: which there are, all side by side, and each alone. Not here: scores at the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tutelage.experiments.figure_style import (
    Theme,
    add_legend,
    capitalised,
    colour_of,
    marker_of,
    new_figure,
    style_axes,
    styled,
)
from tutelage.experiments.results import ExperimentResults, ModelResult


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
    Panel("delta_w_norm", "Weight drift", "‖W − W₀‖ of the effective weights"),
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
        Panel(f"{ON_THE_WAY}{measure.name}", capitalised(measure.title), measure.unit.value, "step 0 is the base model")
        for measure in results.measures
    ]
    return [panel for panel in (*PANELS, *directions, *scores) if panel.metric in metrics]


def trajectories_figure(results: ExperimentResults, theme: Theme) -> Figure:
    """All panels side by side; the last place has the legend."""
    panels = panels_of(results)
    rows = max(1, -(-(len(panels) + 1) // 3))
    figure = new_figure((12.0, 3.3 * rows), theme)
    seeds = "seed" if len(results.seeds) == 1 else "seeds"
    shown = ", ".join(map(str, results.seeds))
    figure.suptitle(f"Training trajectories: {results.model}, {seeds} {shown}", color=theme.ink, fontsize=13)
    places: list[Any] = list(figure.subplots(rows, 3, squeeze=False).flat)
    for panel, place in zip(panels, places, strict=False):
        _draw_panel(place, panel, results.runs, theme)
    for place in places[len(panels) :]:
        place.axis("off")
    add_legend(places[len(panels)], results.runs, theme, loc="center", fontsize=12)
    if len(results.seeds) > 1:
        places[len(panels)].set_title("lines: mean over seeds; bands: lowest to highest", fontsize=8, color=theme.ink)
    return figure


def panel_figure(results: ExperimentResults, panel: Panel, theme: Theme) -> Figure:
    """One panel alone, to be read on a phone."""
    figure = new_figure((4.6, 3.2), theme)
    axes = figure.subplots()
    _draw_panel(axes, panel, results.runs, theme)
    add_legend(axes, results.runs, theme, loc="best", fontsize=8)
    return figure


def _draw_panel(axes: Any, panel: Panel, runs: Sequence[ModelResult], theme: Theme) -> None:
    shown = [(run, style, [seed.curves.get(panel.metric, []) for seed in run.finished]) for run, style in styled(runs)]
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
    style_axes(axes, theme)
