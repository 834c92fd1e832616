"""How sure a mean score is: bootstrap confidence intervals over items and seeds. Not here: the scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ShapeError

Scores = Sequence[Sequence[float]]
"""One row a seed, one column an item; every seed was scored on the same items."""

DRAWS_IN_MEMORY = 1 << 22
"""Numbers drawn at a time: 32 MB."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the range that holds it at the given level (0.95 = 95 %)."""

    mean: float
    low: float
    high: float
    level: float

    @property
    def excludes_zero(self) -> bool:
        """For a difference: larger than the noise."""
        return self.low > 0.0 or self.high < 0.0


def bootstrap_interval(scores: Scores, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean score.

    In every resample seeds and items are drawn with replacement, each on its own, and all drawn seeds meet the same
    drawn items (Owen, "The pigeonhole bootstrap", 2007). With one seed it is the usual bootstrap over items, and what
    another seed would change is not in the interval. The same `seed` gives the same interval. Raises ShapeError for
    no scores, rows of different length, or a score that is not finite.
    """
    scores_SI = _matrix(scores)
    means_R = _resampled_means([scores_SI], resamples, seed)[0]
    return _interval(float(scores_SI.mean()), means_R, level)


def bootstrap_difference(
    scores: Scores, others: Scores, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The same for mean(scores) − mean(others), paired by item: both sides meet the same drawn items.

    Seeds are drawn for each side on its own; the sides may have different numbers of them. Raises ShapeError also
    where the sides have different numbers of items.
    """
    scores_SI, others_SI = _matrix(scores), _matrix(others)
    if scores_SI.shape[1] != others_SI.shape[1]:
        raise ShapeError(
            f"the scores are of {scores_SI.shape[1]} and {others_SI.shape[1]} items; compare scores on the same items"
        )
    means_R, other_means_R = _resampled_means([scores_SI, others_SI], resamples, seed)
    return _interval(float(scores_SI.mean() - others_SI.mean()), means_R - other_means_R, level)


def _matrix(scores: Scores) -> NDArray[np.float64]:
    lengths = {len(row) for row in scores}
    if len(lengths) != 1 or 0 in lengths:
        raise ShapeError(f"scores have rows of {sorted(lengths)} items; give one row a seed, each with all items")
    scores_SI = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(scores_SI).all():
        missing = int((~np.isfinite(scores_SI)).sum())
        raise ShapeError(f"{missing} of {scores_SI.size} scores are not finite; leave failed items out and count them")
    return scores_SI


def _resampled_means(sides: list[NDArray[np.float64]], resamples: int, seed: int) -> list[NDArray[np.float64]]:
    """The mean of each side [S, I] in every resample, shape [R]; all sides meet the same drawn items."""
    generator = np.random.default_rng(seed)
    items = sides[0].shape[1]
    block = max(1, DRAWS_IN_MEMORY // items)
    means: list[list[NDArray[np.float64]]] = [[] for _ in sides]
    for start in range(0, resamples, block):
        items_RI = _draws(generator, min(block, resamples - start), items)
        for side, scores_SI in zip(means, sides, strict=True):
            seeds_RS = _draws(generator, len(items_RI), scores_SI.shape[0])
            side.append(((items_RI @ scores_SI.T) * seeds_RS).sum(axis=1) / scores_SI.size)
    return [np.concatenate(side) for side in means]


def _draws(generator: np.random.Generator, resamples: int, count: int) -> NDArray[np.float64]:
    """How often each of `count` things is drawn in each resample, shape [R, count]; rows add up to `count`."""
    return generator.multinomial(count, np.full(count, 1.0 / count), size=resamples).astype(np.float64)


def _interval(mean: float, resampled_R: NDArray[np.float64], level: float) -> Interval:
    low, high = np.quantile(resampled_R, [(1.0 - level) / 2, (1.0 + level) / 2])
    return Interval(mean, float(low), float(high), level)
