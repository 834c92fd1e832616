"""What all figures share: one colour and one marker per objective, themes, axes, legends. Not here: what is drawn."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tutelage.experiments.results import ModelResult
from tutelage.experiments.specification import BASE

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

DOTS_PER_INCH = 150


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


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DOTS_PER_INCH, facecolor=figure.get_facecolor())
    return content.getvalue()


def pdf(figure: Figure) -> bytes:
    """The figure as a PDF file, with text as text; the same bytes for the same figure."""
    content = io.BytesIO()
    figure.savefig(content, format="pdf", facecolor=figure.get_facecolor(), metadata={"CreationDate": None})
    return content.getvalue()


def new_figure(size: tuple[float, float], theme: Theme) -> Figure:
    """A figure of this size in inches, in the colours of the theme."""
    figure = Figure(figsize=size, layout="constrained", facecolor=theme.paper)
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    return figure


def styled(runs: Sequence[ModelResult]) -> list[tuple[ModelResult, Any]]:
    """Every run with a line style: the colour is the objective's, so runs of one objective differ in style."""
    seen: dict[str | None, int] = {}
    found: list[tuple[ModelResult, Any]] = []
    for run in runs:
        number = seen.get(run.objective, 0)
        seen[run.objective] = number + 1
        found.append((run, LINE_STYLES[number % len(LINE_STYLES)]))
    return found


def add_legend(axes: Any, runs: Sequence[ModelResult], theme: Theme, *, loc: str, fontsize: float) -> None:
    """A line and a marker for each run."""
    handles = [
        Line2D([], [], color=colour_of(run), marker=marker_of(run), linewidth=1.8, linestyle=style, label=run.name)
        for run, style in styled(runs)
    ]
    axes.legend(handles=handles, loc=loc, frameon=False, fontsize=fontsize, labelcolor=theme.ink)


def capitalised(text: str) -> str:
    """With a large first letter, as titles have it."""
    return text[:1].upper() + text[1:]


def style_axes(axes: Any, theme: Theme) -> None:
    """Grid, ticks and spines in the colours of the theme."""
    axes.set_facecolor(theme.paper)
    axes.grid(visible=True, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, labelsize=8)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.ink)
