"""Points in a plane as SVG shapes: two measures of several runs. Drawn here, so that no script is needed.

Not here: which measures there are (`compare.py`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 34, 48
ROOM = 0.06
"""Between the outermost points and the frame, as a part of their distance."""
TICKS = 5


@dataclass(frozen=True)
class Tick:
    """at: pixels along the axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """A run. index: its place among the runs, which gives the colour. left: whether its label is left of it."""

    x: float
    y: float
    index: int
    left: bool


@dataclass(frozen=True)
class Scatter:
    """Everything in pixels."""

    dots: list[Dot]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def scatter_of(points: Mapping[int, tuple[float, float]]) -> Scatter:
    """points: by the run's place among the runs, its two values."""
    x_ticks = _ticks([x for x, _ in points.values()])
    y_ticks = _ticks([y for _, y in points.values()])
    to_x = _scale(x_ticks, LEFT, WIDTH - RIGHT)
    to_y = _scale(y_ticks, HEIGHT - BOTTOM, TOP)
    dots = []
    for index, (x, y) in points.items():
        at = to_x(x)
        dots.append(Dot(at, to_y(y), index, left=at > (LEFT + WIDTH - RIGHT) * 0.62))
    return Scatter(
        dots,
        [Tick(to_x(value), f"{value:.4g}") for value in x_ticks],
        [Tick(to_y(value), f"{value:.4g}") for value in y_ticks],
    )


def _scale(ticks: Sequence[float], begin: float, end: float) -> Callable[[float], float]:
    low, high = ticks[0], ticks[-1]
    return lambda value: round(begin + (value - low) / (high - low) * (end - begin), 1)


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers around all values, at least two of them."""
    low, high = min(values), max(values)
    same = high - low <= 1e-12 * max(abs(low), abs(high))
    room = (abs(low) * 0.1 or 1.0) if same else (high - low) * ROOM
    # What cannot be negative gets no negative ticks.
    low, high = (0.0 if 0 <= low < room else low - room), (0.0 if -room < high <= 0 < -low else high + room)
    rough = (high - low) / (TICKS - 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * times for times in (1, 2, 2.5, 5, 10) if unit * times >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]
