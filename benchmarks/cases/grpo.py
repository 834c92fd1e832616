"""One grpo step: two prompts, eight answers each, 24 tokens each; ours is TRL's trainer with our rollouts
and log-probabilities."""

import json
from pathlib import Path
from typing import Any

from benchmarks.distillation import step_rows
from benchmarks.limits import Decoder, Predictions, Rates, rollout_work
from benchmarks.measure import answer
from benchmarks.settings import RANK
from benchmarks.table import Row, Samples

TITLE = "GRPO step: SmolLM2-135M, LoRA, 2 prompts of 8 answers, 24 new tokens"
SIDES = ("ours", "trl")
ONCE = SIDES
GROUP, ANSWERS, NEW_TOKENS = 8, 16, 24
DATA = Path(__file__).resolve().parents[2] / "examples" / "traits_grpo" / "train.jsonl"


def upper_case_share(*, completions: Any, **columns: Any) -> list[float]:
    """The reward of both sides: upper-case letters among all characters."""
    texts = [turns[-1]["content"] for turns in completions]
    return [sum(character.isupper() for character in text) / max(1, len(text)) for text in texts]


def measure(side: str) -> dict[str, list[float]]:
    """Seconds of a step and its parts, after one to warm up. Each step has both prompts."""
    from benchmarks.steps import our_config, our_trainer, run

    data = [
        {"messages": json.loads(line)["messages"]}
        for line in DATA.read_text(encoding="utf-8").splitlines()[: ANSWERS // GROUP]
    ]
    if side == "trl":
        return run(_trls(data), rollout="_generate")
    config = our_config(
        data,
        2,
        loss="grpo",
        grpo_reward_function=f"{Path(__file__).resolve()}:upper_case_share",
        grpo_num_generations=GROUP,
        grpo_max_completion_length=NEW_TOKENS,
        per_device_train_batch_size=ANSWERS,
        beta=0.0,
    )
    trainer = our_trainer(config)
    trainer.eos_token_ids = []  # no answer ends early
    return run(trainer, rollout="_generate") | _work(trainer)


def _trls(data: list[dict[str, Any]]) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.steps import lora, plain_model, plain_tokenizer, trl_arguments
    from tutelage.models import resolve_model

    source = resolve_model("smollm2")
    arguments = GRPOConfig(
        **trl_arguments(2) | {"per_device_train_batch_size": ANSWERS},
        num_generations=GROUP,
        max_completion_length=NEW_TOKENS,
        generation_kwargs={"min_new_tokens": NEW_TOKENS},
        beta=0.0,
        gradient_checkpointing=False,  # on by default: slower still
    )
    return GRPOTrainer(
        model=plain_model(source),
        args=arguments,
        reward_funcs=[upper_case_share],
        train_dataset=Dataset.from_list([{"prompt": row["messages"][:1]} for row in data]),
        processing_class=plain_tokenizer(source),
        peft_config=lora(),
    )


def _work(trainer: Any) -> dict[str, list[float]]:
    decoder = Decoder.of(trainer.model.config)
    prompts = [row.prompt_ids for row in trainer.rows for _ in range(GROUP)]
    training = decoder.training(Predictions.of_responses(prompts, NEW_TOKENS), rank=RANK)
    return training | rollout_work(decoder, prompts, [NEW_TOKENS] * ANSWERS)


def rows(samples: Samples, rates: Rates) -> list[Row]:
    """The step, its parts, memory."""
    ours, peer = samples.get("ours", {}), samples.get("trl", {})
    memory = Row("peak memory above the model", "MiB", ours.get("peak_mib", ()), peer.get("peak_mib", ()), "TRL")
    return [*step_rows("step", samples, "trl", "TRL", rates, parts=True, target=None), memory]


if __name__ == "__main__":
    answer(measure)
