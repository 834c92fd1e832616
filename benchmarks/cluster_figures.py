"""The picture of a simulated cluster, docs/images/cluster-simulation.png. Not here: the simulation (`cluster.py`)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.cluster import CATALOGUE, HOUR, Result, SimulatedJob
from tutelage.cluster.plan import group_of
from tutelage.cluster.records import Hardware, Limits
from tutelage.experiments.figure_style import LIGHT, new_figure, png, style_axes

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "cluster-simulation.png"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"
MAX_POINTS = 1500
LEAST_SECONDS = 6.0
"""What begins at once is drawn here, as the axis has no zero."""


def draw(result: Result, jobs: Mapping[str, SimulatedJob], scarce: Hardware) -> None:
    """Jobs and machines, cost, and waiting time. scarce: a piece of hardware whose jobs are drawn by themselves."""
    figure = new_figure((11.0, 3.4), LIGHT)
    machines, cost, waits = figure.subplots(1, 3)
    points = result.series[:: max(1, len(result.series) // MAX_POINTS)]
    hours = [when / HOUR for when, *_ in points]
    _lines(machines, "Jobs and machines", "hours", hours, [
        ("jobs that wait", [waiting for _, waiting, _, _ in points], BLUE),
        ("machines", [there for _, _, there, _ in points], ORANGE),
    ])  # fmt: skip
    spent, total = [], 0.0
    for (when, *_, per_hour), (after, *_) in pairwise(points):
        spent.append(total)
        total += per_hour * (after - when) / HOUR
    _lines(cost, "Cost, US dollars", "hours", hours, [
        ("an hour", [per_hour for *_, per_hour in points], ORANGE),
        ("in all", [*spent, total], GREY),
    ])  # fmt: skip
    rest = sorted(wait for job, wait in result.waits.items() if not _needs(jobs[job], scarce))
    scarce_waits = sorted(wait for job, wait in result.waits.items() if _needs(jobs[job], scarce))
    style_axes(waits, LIGHT)
    for label, values, colour in ((f"jobs for {scarce.name}", scarce_waits, GREY), ("all others", rest, GREEN)):
        share = [100 * (index + 1) / len(values) for index in range(len(values))]
        waits.plot(
            [max(value, LEAST_SECONDS) / 60 for value in values], share, color=colour, linewidth=1.8, label=label
        )
    waits.set_xscale("log")
    waits.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    waits.set_xlabel("minutes", fontsize=9)
    waits.set_ylim(0, 100)
    _titled(waits, "Jobs that have begun, of 100", loc="lower left", bbox_to_anchor=(0.06, 0.12))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_bytes(png(figure))


def _needs(job: SimulatedJob, hardware: Hardware) -> bool:
    """Whether nothing else of the catalogue will do."""
    return group_of(job.requirement, Limits(CATALOGUE, 0)).hardware == (hardware.name,)


def _lines(
    axes: Any, title: str, label: str, hours: Sequence[float], lines: Sequence[tuple[str, Sequence[float], str]]
) -> None:
    style_axes(axes, LIGHT)
    for name, values, colour in lines:
        axes.plot(hours, values, color=colour, linewidth=1.4, label=name)
    axes.set_xlabel(label, fontsize=9)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _titled(axes, title)


def _titled(axes: Any, title: str, **legend: Any) -> None:
    axes.set_title(title, fontsize=10, color=LIGHT.ink, loc="left")
    axes.legend(frameon=False, fontsize=8, labelcolor=LIGHT.ink, **legend)
