"""Training: a config in, a run folder out."""

from tutelage.training.run import Run, train

__all__ = ["Run", "train"]
