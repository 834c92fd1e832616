"""A scorer of this example's own: the reward of grpo on a scale from 0 to 1."""

from tutelage.scoring import traits


def half_of_traits(answer: str, target: str) -> float:
    """traits(answer) / 2, whatever the target."""
    return traits(answer, "spanish") / 2
