"""One sdft step where the vocabulary is all: two layers of the width of Qwen2-0.5B, 151,936 tokens, tied, LoRA."""

from benchmarks.distillation import distillation_step, memory_row, step_rows
from benchmarks.limits import Rates
from benchmarks.measure import answer
from benchmarks.table import Row, Samples, Target

TITLE = "SDFT step: two layers, vocabulary 151,936, LoRA, EMA teacher, 8 prompts, 64 new tokens"
PEERS = {
    "trl": "TRL, full logits, no recomputing",
    "trl_topk": "TRL, top-k, no recomputing",
    "trl_default": "TRL, all defaults: top-k, recomputing",
}
"""Recomputing of activations (`gradient_checkpointing`) is on in TRL unless one says no, and takes memory off it."""
SIDES = ("ours", *PEERS)
ONCE = SIDES
STEPS = {"ours": 2, "trl": 1}
"""In a round; of the others the memory of a first step alone is measured."""


def measure(side: str) -> dict[str, list[float]]:
    """Seconds of steps and their parts, after one to warm up; the peak of all."""
    from benchmarks.steps import large_vocabulary_model

    return distillation_step(side, large_vocabulary_model(), steps=STEPS.get(side, 0))


def rows(samples: Samples, rates: Rates) -> list[Row]:
    """Memory first: that is what the case is for."""
    found = [memory_row(samples, peer, name, Target(0.15)) for peer, name in PEERS.items()]
    return found + step_rows("step", samples, "trl", PEERS["trl"], rates, parts=True, target=None)


if __name__ == "__main__":
    answer(measure)
