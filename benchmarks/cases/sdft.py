"""One sdft step on SmolLM2-135M: LoRA, EMA teacher, 8 prompts, 64 sampled tokens each."""

from benchmarks.distillation import distillation_step, memory_row, step_rows
from benchmarks.limits import Rates
from benchmarks.measure import answer
from benchmarks.table import Row, Samples, Target

TITLE = "SDFT step: SmolLM2-135M, LoRA, EMA teacher, 8 prompts, 64 new tokens"
SIDES = ("ours", "trl", "trl_topk")
ONCE = ("trl_topk",)
"""Measured in the first round only."""


def measure(side: str) -> dict[str, list[float]]:
    """Seconds of a step and its parts, after one to warm up."""
    from tutelage.models import resolve_model

    return distillation_step(side, resolve_model("smollm2"))


def rows(samples: Samples, rates: Rates) -> list[Row]:
    """The step and its parts, tokens and memory, then the step against top-k."""
    ours, peer = samples.get("ours", {}), samples.get("trl", {})
    found = step_rows("step", samples, "trl", "TRL, full logits", rates, parts=True, target=Target(0.45))
    sampled = 8 * 64
    found += [
        Row(
            "sampled and trained",
            "tokens/s",
            [sampled / seconds for seconds in ours.get("step", ())],
            [sampled / seconds for seconds in peer.get("step", ())],
            "TRL, full logits",
        ),
        memory_row(samples, "trl", "TRL, full logits"),
    ]
    topk = step_rows("step", samples, "trl_topk", "TRL, top-k (default)", rates, parts=False, target=None)
    return [*found, *topk]


if __name__ == "__main__":
    answer(measure)
