"""One sdft step, ours and TRL's: the same rows, prompts, lengths, adapter and divergence.

Used by the cases `sdft` and `sdft_vocabulary`, and by `sizes`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.limits import Decoder, Predictions, Rates, rollout_limit, rollout_work
from benchmarks.products import products_alone
from benchmarks.settings import PARTS, RANK
from benchmarks.table import Row, Samples, Target

ROWS = Path(__file__).resolve().parents[1] / "examples" / "tool_calls" / "data" / "train.jsonl"
TRL = {
    "trl": "full_logits",
    "trl_topk": "topk_logits",
    "trl_default": "topk_logits",
}
"""Its `distillation_mode`. `trl_default` alone recomputes activations in the backward pass, as TRL does unless told
otherwise."""


def distillation_rows(count: int) -> list[dict[str, Any]]:
    """The first rows of the tool calls."""
    lines = ROWS.read_text(encoding="utf-8").splitlines()[:count]
    return [{"messages": json.loads(line)["messages"]} for line in lines]


def distillation_step(
    side: str, model: str, *, prompts: int = 8, new_tokens: int = 64, steps: int = 1
) -> dict[str, list[float]]:
    """Seconds and memory of steps after one to warm up (0 steps: memory alone, of that one). `new_tokens` tokens are
    sampled for each prompt, no fewer and no more. Of the side `products` seconds alone, of one pass: see there."""
    from benchmarks.steps import run

    if side == "products":
        trainer = _ours(model, prompts, new_tokens, 1)
        asked = [[getattr(row, name) for row in trainer.train_dataset] for name in ("prompt_ids", "teacher_prompt_ids")]
        return products_alone(Decoder.of(trainer.model.config), *asked, new_tokens)
    if side == "ours":
        trainer = _ours(model, prompts, new_tokens, 1 + steps)
        work = _work(trainer, new_tokens)
        return run(trainer, rollout="sample") | work
    return run(_trls(side, model, prompts, new_tokens, 1 + steps), rollout="_generate")


def _ours(model: str, prompts: int, new_tokens: int, steps: int) -> Any:
    from benchmarks.steps import our_config, our_trainer

    config = our_config(
        distillation_rows(prompts),
        steps,
        model=model,
        loss="sdft",
        per_device_train_batch_size=prompts,
        sdft_max_new_tokens=new_tokens,
        sdft_gold_gain_rows=0,  # a measurement that TRL does not make
    )
    trainer = our_trainer(config)
    trainer.stop_ids = set()
    return trainer


def _trls(side: str, model: str, prompts: int, new_tokens: int, steps: int) -> Any:
    from datasets import Dataset
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    from benchmarks.steps import lora, plain_model, plain_tokenizer, trl_arguments
    from tutelage.config.objectives import BUILT_IN_DEMO_TEMPLATE

    rows = [
        {"prompt": row["messages"][:-1], "privileged_context": row["messages"][-1]["content"]}
        for row in distillation_rows(prompts)
    ]
    # 1.0 is the reverse KL; top-k keeps TRL's default
    full = {"distillation_alpha": 1.0} if TRL[side] == "full_logits" else {}
    arguments = SDFTConfig(
        **trl_arguments(steps) | {"per_device_train_batch_size": prompts},
        distillation_mode=TRL[side],
        teacher_model_kind="ema",
        teacher_prompt_template=BUILT_IN_DEMO_TEMPLATE.replace("{question}", "{prompt}").replace(
            "{demonstration}", "{privileged_context}"
        ),
        num_generations=1,
        max_completion_length=new_tokens,
        generation_kwargs={"min_new_tokens": new_tokens},
        gradient_checkpointing=side == "trl_default",
        **full,
    )
    return SDFTTrainer(
        model=plain_model(model),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=plain_tokenizer(model),
        peft_config=lora(),
    )


def _work(trainer: Any, new_tokens: int) -> dict[str, list[float]]:
    """The FLOPs of a step's parts. Responses are all different, so any will do."""
    decoder = Decoder.of(trainer.model.config)
    rows = list(trainer.train_dataset)
    students, teachers = (
        Predictions.of_responses(prompts, new_tokens)
        for prompts in ([row.prompt_ids for row in rows], [row.teacher_prompt_ids for row in rows])
    )
    return (
        decoder.training(students, rank=RANK)
        | {"flops teacher": [decoder.forward(teachers.tree, teachers.used)]}
        | {"flops head and loss": [decoder.head(students.used, 2) + decoder.head(teachers.used, 1)]}
        | rollout_work(decoder, [row.prompt_ids for row in rows], [new_tokens] * len(rows))
    )


def part_limits(work: Mapping[str, Sequence[float]], rates: Rates) -> dict[str, float]:
    """Seconds that the machine needs for each part that has products, and for the whole step."""
    parts = {
        part: work[f"flops {part}"][0] / rates.flops
        for part in ("teacher", "student forward", "head and loss", "backward")
        if f"flops {part}" in work
    }
    if "flops prompts" in work:
        parts["rollout"] = rollout_limit(work, rates)
    return {"step": sum(parts.values()), **parts}


def step_rows(
    name: str, samples: Samples, peer: str, peer_name: str, rates: Rates, *, parts: bool, target: Target | None
) -> list[Row]:
    """The time of the step, then of its parts, against one peer."""
    ours, peers = samples.get("ours", {}), samples.get(peer, {})
    limits = part_limits(ours, rates) if ours else {}
    rows = [Row(name, "s", ours.get("step", ()), peers.get("step", ()), peer_name, limits.get("step"), target)]
    for part in (*PARTS, "other") if parts else ():
        if part in ours or part in peers:
            rows.append(Row(f"– {part}", "s", ours.get(part, ()), peers.get(part, ()), peer_name, limits.get(part)))
    return rows


def memory_row(samples: Samples, peer: str, peer_name: str, target: Target | None = None) -> Row:
    """The peak of a step against one peer."""
    peaks = [samples.get(side, {}).get("peak_mib", ()) for side in ("ours", peer)]
    return Row("peak memory above the model", "MiB", peaks[0], peaks[1], peer_name, target=target)
