"""How good an answer is: functions of texts, and judges over HTTP."""

from tutelage.scoring.function_files import function_files
from tutelage.scoring.functions import load_function, load_scorer
from tutelage.scoring.judge_prompts import label_of, quality_prompt, score_of, similarity_prompt
from tutelage.scoring.judges import Judge, Reply, run_to_end
from tutelage.scoring.scorers import Scorer, exact_match, json_equal, regex, rouge_l
from tutelage.scoring.tool_calls import tool_call_match
from tutelage.scoring.traits import TRAIT_LANGUAGES, traits

__all__ = [
    "TRAIT_LANGUAGES",
    "Judge",
    "Reply",
    "Scorer",
    "exact_match",
    "function_files",
    "json_equal",
    "label_of",
    "load_function",
    "load_scorer",
    "quality_prompt",
    "regex",
    "rouge_l",
    "run_to_end",
    "score_of",
    "similarity_prompt",
    "tool_call_match",
    "traits",
]
