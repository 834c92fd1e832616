"""What did each objective teach, and what did it cost? Runs, evaluations, tables, figures, one page of HTML."""

from tutelage.experiments.compare import run_experiment
from tutelage.experiments.demo import run_demo
from tutelage.experiments.loading import load_experiment
from tutelage.experiments.planning import PlannedRun, check_experiment, unequal_passes
from tutelage.experiments.results import ExperimentResults
from tutelage.experiments.specification import Experiment

__all__ = [
    "Experiment",
    "ExperimentResults",
    "PlannedRun",
    "check_experiment",
    "load_experiment",
    "run_demo",
    "run_experiment",
    "unequal_passes",
]
