"""What a model can do: answers scored against targets, choices by log-probability, and how sure the scores are."""

from tutelage.evaluation.freeform import FreeformEvaluation
from tutelage.evaluation.generate import GenerationItem, GenerationResult, evaluate_generation
from tutelage.evaluation.inspect_tasks import InspectItem, InspectMetric, InspectResult, evaluate_inspect
from tutelage.evaluation.intervals import Interval, bootstrap_difference, bootstrap_interval
from tutelage.evaluation.kinds import ChoiceEvaluation, GenerateEvaluation, LogProbEvaluation
from tutelage.evaluation.lm_eval import LmEvalItem, LmEvalMetric, LmEvalResult, LmEvalTask, evaluate_lm_eval
from tutelage.evaluation.measures import Evaluation, Measure, Outcome, Role, Unit
from tutelage.evaluation.multiple_choice import ChoiceItem, MultipleChoiceResult, evaluate_multiple_choice
from tutelage.evaluation.questions import ChoiceQuestion, Question, read_choice_questions, read_questions
from tutelage.evaluation.results import OutcomeFolder, write_items
from tutelage.evaluation.run_suite import SuiteOutcome, evaluate_suite
from tutelage.evaluation.suite import load_suite, read_suite
from tutelage.scoring import Scorer, exact_match, regex

__all__ = [
    "ChoiceEvaluation",
    "ChoiceItem",
    "ChoiceQuestion",
    "Evaluation",
    "FreeformEvaluation",
    "GenerateEvaluation",
    "GenerationItem",
    "GenerationResult",
    "InspectItem",
    "InspectMetric",
    "InspectResult",
    "Interval",
    "LmEvalItem",
    "LmEvalMetric",
    "LmEvalResult",
    "LmEvalTask",
    "LogProbEvaluation",
    "Measure",
    "MultipleChoiceResult",
    "Outcome",
    "OutcomeFolder",
    "Question",
    "Role",
    "Scorer",
    "SuiteOutcome",
    "Unit",
    "bootstrap_difference",
    "bootstrap_interval",
    "evaluate_generation",
    "evaluate_inspect",
    "evaluate_lm_eval",
    "evaluate_multiple_choice",
    "evaluate_suite",
    "exact_match",
    "load_suite",
    "read_choice_questions",
    "read_questions",
    "read_suite",
    "regex",
    "write_items",
]
