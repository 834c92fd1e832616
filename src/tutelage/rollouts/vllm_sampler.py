"""Sampling with vLLM in the same process: token ids to token ids, by the protocol of `generate`.

vLLM holds the frozen base model once more, and is given the student's adapter anew, as a folder, at each call. Written
after vLLM's documentation (`LLM.generate` with token ids, `SamplingParams`, `LoRARequest`); nobody has run it here.
"""

import importlib
import importlib.util
import tempfile
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from torch import nn

from tutelage.errors import ConfigError

GPU_SHARE = 0.4
"""Of the GPU's memory, for vLLM's weights and cache; the rest is the training's."""


class Sampler(Protocol):
    """One response for each prompt, as token ids, the end-of-turn token included where there is one; by the present
    weights of the model, which is left as it was. A seed for each prompt: the same seed, the same response."""

    def __call__(
        self,
        model: nn.Module,
        prompts: Sequence[list[int]],
        *,
        pad_token_id: int,
        stop_ids: Collection[int],
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seeds: Sequence[int] | None = None,
    ) -> list[list[int]]: ...


def require_vllm() -> None:
    """Raises ConfigError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "rollout_backend: vllm is not installed; pip install vllm, or set rollout_backend: transformers"
        )


class VllmSampler:
    """A `Sampler` for a PEFT model whose base is on disk or the Hub. max_length: of prompt and response, in tokens."""

    def __init__(self, model: nn.Module, max_length: int) -> None:
        require_vllm()
        adapted: Any = model
        adapter = adapted.peft_config[adapted.active_adapter]
        vllm: Any = importlib.import_module("vllm")
        self._parameters: Any = vllm.SamplingParams
        self._request: Any = importlib.import_module("vllm.lora.request").LoRARequest
        self._engine: Any = vllm.LLM(
            model=adapter.base_model_name_or_path,
            max_model_len=max_length,
            gpu_memory_utilization=GPU_SHARE,
            enable_lora=True,
            max_lora_rank=_allowed_rank(adapter.r),
            max_loras=1,
        )
        self._calls = 0

    def __call__(
        self,
        model: nn.Module,
        prompts: Sequence[list[int]],
        *,
        pad_token_id: int,
        stop_ids: Collection[int],
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seeds: Sequence[int] | None = None,
    ) -> list[list[int]]:
        if not prompts:
            return []
        adapted: Any = model
        parameters = [
            self._parameters(
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_new_tokens,
                stop_token_ids=sorted(stop_ids),
                seed=seed,
                ignore_eos=True,  # turns end where the template says, not where the model's own settings do
                detokenize=False,
            )
            for seed in (seeds or [None] * len(prompts))
        ]
        self._calls += 1  # vLLM keeps adapters by their number: another one, or it goes on with the last
        with tempfile.TemporaryDirectory() as folder:
            adapted.save_pretrained(folder, selected_adapters=[adapted.active_adapter])
            outputs = self._engine.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                sampling_params=parameters,
                lora_request=self._request(f"step-{self._calls}", self._calls, folder),
                use_tqdm=False,
            )
        return [list(output.outputs[0].token_ids) for output in outputs]


def _allowed_rank(rank: int) -> int:
    """vLLM makes room for adapters of these ranks only."""
    return next(allowed for allowed in (8, 16, 32, 64, 128, 256, 320, 512) if allowed >= rank)
