"""The plots of docs/performance.md: time and memory over size. Not here: how they are measured (`sizes.py`).

python -m benchmarks.figures      # from benchmarks/results/sizes.json
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
TITLES = {
    "new_tokens": ("response-length", "tokens of each response"),
    "prompts": ("batch", "prompts in a step"),
    "vocabulary": ("vocabulary", "tokens in the vocabulary"),
}
SIDES = {"ours": ("this project", "#009E73", "^"), "trl": (f"TRL {version('trl')}, full logits", "#767676", "D")}
"""Name, colour and marker; ours are those of sdft in all other figures."""
MEASURES = {
    "seconds": ("Time of a step", "seconds"),
    "peak_mib": ("Peak memory above the model", "MiB"),
}
"""Title and unit of a panel."""


def draw_sizes(points: Sequence[Mapping[str, Any]]) -> None:
    """One picture an axis, with a panel for time and one for memory; docs/images/performance-*.png."""
    from tutelage.experiments.figure_style import LIGHT, new_figure, png, style_axes

    for axis, (name, label) in TITLES.items():
        figure = new_figure((8.4, 3.2), LIGHT)
        for panel, (measure, (title, unit)) in zip(figure.subplots(1, 2), MEASURES.items(), strict=True):
            style_axes(panel, LIGHT)
            ticks: set[float] = set()
            for side, (shown, colour, marker) in SIDES.items():
                sizes, values = line(points, axis, side, measure)
                ticks.update(sizes)
                panel.plot(sizes, values, color=colour, marker=marker, linewidth=1.8, label=shown)
            panel.set_xticks(sorted(ticks))
            panel.set_xlim(left=0)
            panel.set_ylim(bottom=0)
            panel.set_xlabel(label, fontsize=9)
            panel.set_ylabel(unit, fontsize=9)
            panel.set_title(title, fontsize=10, color=LIGHT.ink, loc="left")
            panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:.4g}")
            panel.legend(frameon=False, fontsize=8, labelcolor=LIGHT.ink)
        IMAGES.mkdir(parents=True, exist_ok=True)
        (IMAGES / f"performance-{name}.png").write_bytes(png(figure))


def line(points: Sequence[Mapping[str, Any]], axis: str, side: str, measure: str) -> tuple[list[float], list[float]]:
    """Sizes in order, and the median of the measure at each."""
    here = [point for point in points if (point["axis"], point["side"]) == (axis, side)]
    pairs = sorted((point["size"], statistics.median(point[measure])) for point in here)
    return [size for size, _ in pairs], [value for _, value in pairs]


if __name__ == "__main__":
    draw_sizes(json.loads((ROOT / "benchmarks" / "results" / "sizes.json").read_text(encoding="utf-8"))["points"])
