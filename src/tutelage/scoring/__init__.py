"""How good an answer is: functions of texts, and judges over HTTP."""

from tutelage.scoring.functions import function_file, load_function, load_scorer
from tutelage.scoring.judge_prompts import label_of, quality_prompt, score_of, similarity_prompt
from tutelage.scoring.judges import Judge, Reply
from tutelage.scoring.scorers import Scorer, exact_match, json_equal, regex, rouge_l
from tutelage.scoring.tool_calls import tool_call_match
from tutelage.scoring.traits import TRAIT_LANGUAGES, traits

__all__ = [
    "TRAIT_LANGUAGES",
    "Judge",
    "Reply",
    "Scorer",
    "exact_match",
    "function_file",
    "json_equal",
    "label_of",
    "load_function",
    "load_scorer",
    "quality_prompt",
    "regex",
    "rouge_l",
    "score_of",
    "similarity_prompt",
    "tool_call_match",
    "traits",
]
