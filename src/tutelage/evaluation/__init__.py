"""What a model can do: answers scored against targets, choices by log-probability, and how sure the scores are."""

from tutelage.evaluation.generate import GenerationItem, GenerationResult, evaluate_generation
from tutelage.evaluation.inspect_tasks import InspectItem, InspectMetric, InspectResult, evaluate_inspect
from tutelage.evaluation.intervals import Interval, bootstrap_difference, bootstrap_interval
from tutelage.evaluation.lm_eval import LmEvalItem, LmEvalMetric, LmEvalResult, LmEvalTask, evaluate_lm_eval
from tutelage.evaluation.multiple_choice import ChoiceItem, MultipleChoiceResult, evaluate_multiple_choice
from tutelage.evaluation.questions import ChoiceQuestion, Question, read_choice_questions, read_questions
from tutelage.evaluation.results import write_items
from tutelage.evaluation.scorers import Scorer, exact_match, regex

__all__ = [
    "ChoiceItem",
    "ChoiceQuestion",
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
    "MultipleChoiceResult",
    "Question",
    "Scorer",
    "bootstrap_difference",
    "bootstrap_interval",
    "evaluate_generation",
    "evaluate_inspect",
    "evaluate_lm_eval",
    "evaluate_multiple_choice",
    "exact_match",
    "read_choice_questions",
    "read_questions",
    "regex",
    "write_items",
]
