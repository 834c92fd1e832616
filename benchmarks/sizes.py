"""Time and memory of an sdft step over the length of responses, the batch and the vocabulary: ours and TRL's.

    python -m benchmarks --sizes                  # all of it, 20 minutes; writes sizes.json and the plots

One side of one size is a process of its own, as in the bench.
"""

import datetime
from pathlib import Path
from typing import Any

from benchmarks.distillation import distillation_step
from benchmarks.measure import answer
from benchmarks.workers import Progress, SideFailedError, samples_of, write

SMALLEST_VOCABULARY = 49_152
"""That of SmolLM2, whose tokenizer the models of all vocabularies have."""
AXES: dict[str, list[dict[str, int]]] = {
    "new_tokens": [{"new_tokens": size} for size in (16, 32, 64, 128)],
    "prompts": [{"prompts": size} for size in (2, 4, 8, 16)],
    "vocabulary": [{"vocabulary": size} for size in (SMALLEST_VOCABULARY, 98_304, 151_936, 262_144)],
}
"""Sizes of each axis; the others stay as in `USUAL`. Over the vocabulary it is the two layers of the case
`sdft_vocabulary`. Larger ones would take TRL minutes a step."""
USUAL = {"new_tokens": 64, "prompts": 8, "vocabulary": 0}
"""A vocabulary of 0 is SmolLM2 with its 30 layers."""
SIDES = ("ours", "trl")


def measure(side: str, *, new_tokens: int, prompts: int, vocabulary: int) -> dict[str, list[float]]:
    """Seconds and peak of a step after one to warm up."""
    from benchmarks.steps import large_vocabulary_model
    from tutelage.models import resolve_model

    model = large_vocabulary_model(vocabulary) if vocabulary else resolve_model("smollm2")
    return distillation_step(side, model, prompts=prompts, new_tokens=new_tokens)


def measure_all(output: Path) -> int:
    """Every point on both sides, taking turns, written after each; the exit code."""
    from benchmarks.figures import draw_sizes

    progress, failed = Progress(), False
    points: list[dict[str, Any]] = []
    known: dict[tuple[int, ...], dict[str, list[float]]] = {}
    for axis, sizes in AXES.items():
        for size in sizes:
            for side in SIDES:
                given = USUAL | size
                key = (SIDES.index(side), *given.values())
                if key not in known:  # the usual size is a point of two axes
                    progress.say(f"{axis} {size[axis]:,}: {side}")
                    arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]
                    try:
                        known[key] = samples_of("benchmarks.sizes", "--side", side, *arguments)
                    except SideFailedError as error:
                        progress.say(f"{axis} {size[axis]:,}: {side} failed: {error}")
                        failed = True
                        continue
                point = {"axis": axis, "size": size[axis], "side": side}
                points.append(point | {"seconds": known[key]["step"], "peak_mib": known[key]["peak_mib"]})
                write(output / "sizes.json", {"date": datetime.date.today().isoformat(), "points": points})
    draw_sizes(points)
    progress.say("done")
    return 1 if failed else 0


if __name__ == "__main__":
    answer(measure, *USUAL)
