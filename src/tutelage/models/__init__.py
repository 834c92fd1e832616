"""The model itself: loading, adapters, the head, copies of its weights, scoring. Not here: how it is trained."""

from tutelage.models.adapted_linear import AdaptedLinear
from tutelage.models.branch_attention import BRANCHES
from tutelage.models.head import attach_head, head_forward
from tutelage.models.identity import model_identity
from tutelage.models.inference import inference_mode_of
from tutelage.models.layout import Layout, has_window, lay_out, padded, shared_tokens, takes_trees
from tutelage.models.loading import LoadedModel, load_frozen, load_model, load_tokenizer, resolve_model
from tutelage.models.scoring import ResponseKl, ResponseScore, response_kl, response_log_probs, response_scores
from tutelage.models.weight_copy import WeightCopy
from tutelage.models.wrappers import unwrapped

__all__ = [
    "BRANCHES",
    "AdaptedLinear",
    "Layout",
    "LoadedModel",
    "ResponseKl",
    "ResponseScore",
    "WeightCopy",
    "attach_head",
    "has_window",
    "head_forward",
    "inference_mode_of",
    "lay_out",
    "load_frozen",
    "load_model",
    "load_tokenizer",
    "model_identity",
    "padded",
    "resolve_model",
    "response_kl",
    "response_log_probs",
    "response_scores",
    "shared_tokens",
    "takes_trees",
    "unwrapped",
]
