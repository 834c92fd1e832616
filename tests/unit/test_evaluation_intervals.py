"""Bootstrap intervals against quantiles that can be worked out."""

import math

import pytest

from tutelage.errors import ShapeError
from tutelage.evaluation import bootstrap_difference, bootstrap_interval, intervals


def test_half_right_of_sixteen():
    """A resample has Binomial(16, ½) right: P(≤ 3) = 0.0106 and P(≤ 4) = 0.0384, so the 2.5 % quantile is 4/16."""
    interval = bootstrap_interval([[1.0, 0.0] * 8])
    assert (interval.mean, interval.low, interval.high, interval.level) == (0.5, 0.25, 0.75, 0.95)


def test_a_lower_level_is_narrower():
    """P(≤ 5) = 0.1051 and P(≤ 6) = 0.2272 of Binomial(16, ½): the 15 % quantile of the 70 % interval is 6/16."""
    interval = bootstrap_interval([[1.0, 0.0] * 8], level=0.7)
    assert (interval.low, interval.high) == (0.375, 0.625)


def test_equal_scores_have_no_noise():
    interval = bootstrap_interval([[0.25] * 5, [0.25] * 5, [0.25] * 5])
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.25, 0.25, 0.25), abs=1e-12)


def test_seeds_are_drawn_too():
    """Two seeds, one all right and one all wrong: items add nothing; a resample is 0, ½ or 1 with ¼, ½, ¼."""
    interval = bootstrap_interval([[1.0] * 50, [0.0] * 50])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.0, 1.0)
    narrow = bootstrap_interval([[1.0] * 50, [0.0] * 50], level=0.4)  # 30 % and 70 % quantiles
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_all_drawn_seeds_meet_the_same_drawn_items():
    """Four seeds that agree are no more sure than one: items drawn for each seed alone would halve the width."""
    scores = [1.0, 0.0] * 8
    interval = bootstrap_interval([scores] * 4)
    assert (interval.low, interval.high) == (0.25, 0.75)


def test_the_same_seed_gives_the_same_interval_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch):
    scores = [[math.sin(7 * item) for item in range(30)]]
    interval = bootstrap_interval(scores, seed=1)
    assert interval == bootstrap_interval(scores, seed=1)
    assert interval != bootstrap_interval(scores, seed=2)
    monkeypatch.setattr(intervals, "DRAWS_IN_MEMORY", 30 * 999)
    blocks = bootstrap_interval(scores, seed=1)
    assert (blocks.low, blocks.high) == pytest.approx((interval.low, interval.high), abs=0.02)


def test_differences_are_paired_by_item():
    """Each item 0.1 better: the difference is 0.1 whichever items are drawn, though both means vary widely."""
    scores = [[0.0, 0.9, 0.0, 0.9, 0.0, 0.9]]
    better = [[score + 0.1 for score in scores[0]]]
    interval = bootstrap_difference(better, scores)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.1, 0.1, 0.1), abs=1e-12)
    assert interval.excludes_zero
    assert bootstrap_difference(scores, better).excludes_zero


def test_a_difference_within_noise():
    """One item of ten flips: a resample misses it with (9/10)¹⁰ = 0.35, so 0 is inside."""
    scores = [1.0] * 5 + [0.0] * 5
    interval = bootstrap_difference([[1.0] * 6 + [0.0] * 4], [scores, scores])
    assert interval.mean == pytest.approx(0.1)
    assert interval.low == 0.0
    assert not interval.excludes_zero


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "rows of"),
        ([[]], "rows of"),
        ([[1.0, 0.0], [1.0]], r"rows of \[1, 2\] items"),
        ([[1.0, math.nan]], "1 of 2 scores are not finite"),
    ],
)
def test_scores_that_cannot_be_averaged(scores: list[list[float]], message: str):
    with pytest.raises(ShapeError, match=message):
        bootstrap_interval(scores)


def test_differences_need_the_same_items():
    with pytest.raises(ShapeError, match="2 and 3 items"):
        bootstrap_difference([[1.0, 0.0]], [[1.0, 0.0, 1.0]])
