"""Sampling 32 responses of unequal length to 32 prompts of unequal length, with LoRA and without."""

import json
import random
from collections.abc import Sequence
from typing import Any

from benchmarks.distillation import ROWS
from benchmarks.limits import Decoder, Rates, rollout_limit, rollout_work
from benchmarks.measure import PeakMemory, answer, seconds
from benchmarks.settings import LORA_LAYERS, RANK
from benchmarks.table import Row, Samples, Target

TITLE = "Rollouts: SmolLM2-135M, 32 chat prompts, responses of 8 to 128 tokens"
SIDES = ("ours", "generate", "ours_plain", "generate_plain")
"""`_plain`: without the adapter."""
ONCE = ("ours_plain", "generate_plain")
PROMPTS, SHORTEST, LONGEST = 32, 8, 128


def lengths() -> list[int]:
    """Of the responses, drawn once."""
    draw = random.Random(7)
    return [draw.randint(SHORTEST, LONGEST) for _ in range(PROMPTS)]


def prompts(tokenizer: Any) -> list[list[int]]:
    """Every tenth of the tool calls, in the model's own chat format."""
    lines = ROWS.read_text(encoding="utf-8").splitlines()[:: 320 // PROMPTS][:PROMPTS]
    chats = [json.loads(line)["messages"][:1] for line in lines]
    return tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)["input_ids"]


def measure(side: str) -> dict[str, list[float]]:
    """Seconds for all responses, after a few tokens to warm up."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tutelage.models import resolve_model

    source = resolve_model("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(source)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    torch.manual_seed(1)
    if not side.endswith("_plain"):
        adapter = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=16, target_modules=LORA_LAYERS)
        model = get_peft_model(model, adapter)
    asked = prompts(tokenizer)
    sample = _ours if side.startswith("ours") else _plain_generate
    work = sample(model.eval(), asked, tokenizer.pad_token_id)
    memory = PeakMemory()
    taken = seconds(work)
    return {"s": [taken], "peak_mib": [memory.mib()]} | rollout_work(Decoder.of(model.config), asked, lengths())


class Lengths:
    """When each row of a rollout is done. `stop_when` is given a response, not its row; but a row draws from its own
    seed, so it begins as it began in a rollout before, in which the first tokens of all rows were kept.

    known: those tokens, no more than the shortest response has, so that all rows were there in both rollouts. A row
    that begins like none of them (a sum in another order may tip a draw) is the one that it agrees with longest.
    Raises ValueError where two rows begin alike.
    """

    def __init__(self, known: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
        self._known, self._lengths = [tuple(tokens) for tokens in known], lengths
        self._size = len(self._known[0])
        if len(set(self._known)) < len(self._known):
            raise ValueError(f"two rows begin with the same {self._size} tokens; take other seeds")

    def __call__(self, response: Sequence[int]) -> bool:
        """Whether it has the length of its row."""
        if len(response) < self._size:
            return False
        begun = response[: self._size]
        row = max(range(len(self._known)), key=lambda row: _agreement(self._known[row], begun))
        return len(response) >= self._lengths[row]


def _agreement(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens that both begin with."""
    return next((place for place, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), len(left))


def _ours(model: Any, asked: list[list[int]], pad: int) -> Any:
    """A rollout that ends with the shortest response warms up, and tells which row is which."""
    from tutelage.rollouts import generate

    wanted, shortest = lengths(), min(lengths())
    options: dict[str, Any] = {
        "pad_token_id": pad,
        "stop_ids": set(),
        "seeds": list(range(PROMPTS)),
        "max_new_tokens": LONGEST,
    }
    known = generate(model, asked, stop_when=lambda response: len(response) >= shortest, **options)
    ended = Lengths([tokens[:shortest] for tokens in known], wanted)

    def work() -> None:
        responses = generate(model, asked, stop_when=ended, **options)
        without_padding = [
            length if set(tokens[length:]) <= {pad} else len(tokens)
            for tokens, length in zip(responses, wanted, strict=True)
        ]
        assert without_padding == wanted, f"responses have {without_padding} tokens, and should have {wanted}"

    return work


def _plain_generate(model: Any, asked: list[list[int]], pad: int) -> Any:
    """All prompts in one batch, padded on the left, until the longest response is there."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    width, wanted_B = max(map(len, asked)), torch.tensor(lengths())
    ids_BT = torch.tensor([[pad] * (width - len(ids)) + ids for ids in asked])
    mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in asked])

    class AtLength(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return input_ids.shape[1] - width >= wanted_B

    def sample(longest: int) -> Any:
        with torch.no_grad():
            return model.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                max_new_tokens=longest,
                eos_token_id=None,
                pad_token_id=pad,
                stopping_criteria=StoppingCriteriaList([AtLength()]),
            )

    # A model's own end token would end rows; None in the call alone means the model's own.
    model.generation_config.eos_token_id = None
    getattr(model, "base_model", model).generation_config = model.generation_config
    sample(4)

    def work() -> None:
        assert sample(LONGEST).shape[1] == width + max(lengths())

    return work


def rows(samples: Samples, rates: Rates) -> list[Row]:
    """Tokens a second with LoRA, then without; memory."""
    found: list[Row] = []
    tokens = sum(lengths())
    for end, name in (("", "with LoRA"), ("_plain", "without adapter")):
        ours, peer = samples.get(f"ours{end}", {}), samples.get(f"generate{end}", {})
        limit = tokens / rollout_limit(ours, rates) if ours else None
        rate = [[tokens / seconds for seconds in side.get("s", ())] for side in (ours, peer)]
        found += [
            Row(name, "tokens/s", rate[0], rate[1], "generate", limit, Target(2.5, at_least=True)),
            Row(f"{name}: peak memory", "MiB", ours.get("peak_mib", ()), peer.get("peak_mib", ()), "generate"),
        ]
    return found


if __name__ == "__main__":
    answer(measure)
