"""Losses as pure functions of tensors: a dense, readable reference and a head that never holds all logits.

Torch only. Models, batches, rollouts and what is logged under which name live elsewhere.
"""

from tutelage.losses.chunked import (
    DivergenceResult,
    TokenObjective,
    TokenResult,
    divergence_objective,
    token_objective,
)
from tutelage.losses.dense import (
    dft_loss,
    divergence,
    forward_kl,
    jsd,
    nll_loss,
    reverse_kl,
    sampled_divergence,
    topk_divergence,
)
from tutelage.losses.head import AnyHead, Head, IdentityHead
from tutelage.losses.linear import linear_dft_loss, linear_divergence, linear_nll_loss
from tutelage.losses.log_probs import TokenLogProbs, token_log_probs
from tutelage.losses.per_position import Divergence, DivergenceKind, Estimator
from tutelage.losses.positions import IGNORE_INDEX
from tutelage.losses.statistics import DivergenceStats, TokenStats

__all__ = [
    "IGNORE_INDEX",
    "AnyHead",
    "Divergence",
    "DivergenceKind",
    "DivergenceResult",
    "DivergenceStats",
    "Estimator",
    "Head",
    "IdentityHead",
    "TokenLogProbs",
    "TokenObjective",
    "TokenResult",
    "TokenStats",
    "dft_loss",
    "divergence",
    "divergence_objective",
    "forward_kl",
    "jsd",
    "linear_dft_loss",
    "linear_divergence",
    "linear_nll_loss",
    "nll_loss",
    "reverse_kl",
    "sampled_divergence",
    "token_log_probs",
    "token_objective",
    "topk_divergence",
]
