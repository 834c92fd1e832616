"""Watching a run: drift, KL to base, directions, log-probabilities, samples; none of it changes training."""

from tutelage.monitoring.callback import Monitor
from tutelage.monitoring.drift import delta_w_norm, weight_diff_norm
from tutelage.monitoring.kl import KlToBase
from tutelage.monitoring.log_probs import AnswerScores, AnswerSet
from tutelage.monitoring.prompts import everyday_prompts, read_prompts
from tutelage.monitoring.sink_settings import PROJECT
from tutelage.monitoring.sinks import Sinks

__all__ = [
    "PROJECT",
    "AnswerScores",
    "AnswerSet",
    "KlToBase",
    "Monitor",
    "Sinks",
    "delta_w_norm",
    "everyday_prompts",
    "read_prompts",
    "weight_diff_norm",
]
