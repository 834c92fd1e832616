"""One sdft step on SmolLM2-135M: LoRA, EMA teacher, 8 prompts, 64 sampled tokens each."""

from benchmarks.distillation import distillation_step, memory_row, part_limits, step_rows
from benchmarks.limits import Rates
from benchmarks.measure import answer
from benchmarks.settings import PARTS
from benchmarks.table import Row, Samples, Target

TITLE = "SDFT step: SmolLM2-135M, LoRA, EMA teacher, 8 prompts, 64 new tokens"
SIDES = ("ours", "trl", "trl_topk", "products")
ONCE = ("trl_topk", "products")
"""Measured in the first round only."""


def measure(side: str) -> dict[str, list[float]]:
    """Seconds of a step and its parts, after one to warm up."""
    from tutelage.models import resolve_model

    return distillation_step(side, resolve_model("smollm2"))


def rows(samples: Samples, rates: Rates) -> list[Row]:
    """The step and its parts, tokens and memory, then the step against top-k and against its large products alone."""
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
    products, name = samples.get("products", {}), "its large products alone"
    limits = part_limits(ours, rates) if ours else {}
    alone = [
        Row(
            part if part == "step" else f"– {part}",
            "s",
            ours.get(part, ()),
            products.get(part, ()),
            name,
            limits.get(part),
        )
        for part in ("step", *PARTS)
        if part in products or part == "step"
    ]
    return [*found, *topk, *alone]


if __name__ == "__main__":
    answer(measure)
