"""Sampling from the student, and the teacher that looks at what it sampled."""

from tutelage.rollouts.leaks import TemplatePhrases
from tutelage.rollouts.sampling import generate, rollout_seed
from tutelage.rollouts.teacher import Teacher

__all__ = ["Teacher", "TemplatePhrases", "generate", "rollout_seed"]
