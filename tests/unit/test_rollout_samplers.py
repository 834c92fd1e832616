"""What every sampler of rollouts has to do, asked of ours and of vLLM's.

vLLM needs a GPU. In its place stands a module of its names, which takes the arguments that vLLM documents and no
others, reads base and adapter from where it is told, as vLLM does, and samples with our own `generate`. It shows that
the sampler asks vLLM rightly, not that vLLM answers.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.small_runs import run_small, save_tiny_model, small_config, trained_weights
from tests.tiny import tiny_tokenizer
from tutelage.errors import ConfigError
from tutelage.events import Tag
from tutelage.rollouts import generate
from tutelage.rollouts.vllm_sampler import Sampler, VllmSampler
from tutelage.training.distribution import check_distribution

TOKENIZER = tiny_tokenizer()
EOS: int = TOKENIZER.eos_token_id  # pyright: ignore[reportAssignmentType]  # a list only where several were asked for
PROMPTS = [[1, 100, 101], [1, 102], [1, 103, 104, 105, 106]]
SEEDS = [11, 12, 13]


@dataclass(frozen=True)
class SamplingParams:
    """The arguments of vLLM's that are used; any other is a TypeError here as there."""

    temperature: float
    top_p: float
    max_tokens: int
    stop_token_ids: list[int]
    seed: int | None
    ignore_eos: bool
    detokenize: bool


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """Caches adapters by their number, as vLLM does: a number used twice would sample with old weights."""

    def __init__(
        self,
        *,
        model: str,
        max_model_len: int,
        gpu_memory_utilization: float,
        enable_lora: bool,
        max_lora_rank: int,
        max_loras: int,
    ) -> None:
        assert enable_lora
        assert (max_lora_rank, max_loras) == (8, 1)
        assert 0 < gpu_memory_utilization < 1
        self._source, self._longest = model, max_model_len
        self._adapted: dict[int, Any] = {}

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: list[SamplingParams],
        *,
        use_tqdm: bool,
        lora_request: LoRARequest,
    ) -> list[Any]:
        assert not use_tqdm
        if lora_request.lora_int_id not in self._adapted:
            base = AutoModelForCausalLM.from_pretrained(self._source, dtype=torch.float32)
            self._adapted[lora_request.lora_int_id] = PeftModel.from_pretrained(base, lora_request.lora_path)
        outputs: list[Any] = []
        for prompt, asked in zip(prompts, sampling_params, strict=True):
            (ids,) = prompt.values()
            assert list(prompt) == ["prompt_token_ids"]
            assert len(ids) + asked.max_tokens <= self._longest
            assert asked.ignore_eos
            (response,) = generate(
                self._adapted[lora_request.lora_int_id],
                [ids],
                pad_token_id=EOS,
                stop_ids=asked.stop_token_ids,
                max_new_tokens=asked.max_tokens,
                temperature=asked.temperature,
                top_p=asked.top_p,
                seeds=None if asked.seed is None else [asked.seed],
            )
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(response))]))
        return outputs


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    package: Any = ModuleType("vllm")
    package.__spec__ = SimpleNamespace(name="vllm")
    package.LLM, package.SamplingParams = LLM, SamplingParams
    requests: Any = ModuleType("vllm.lora.request")
    requests.LoRARequest = LoRARequest
    for name, module in (("vllm", package), ("vllm.lora", ModuleType("vllm.lora")), ("vllm.lora.request", requests)):
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """With an adapter of rank 3 that changes what is sampled."""
    base = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path / "tiny"), dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=3, target_modules=["q_proj", "down_proj"], use_rslora=True))
    change(adapted, 1)
    return adapted


def change(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


def ours(model: Any) -> Sampler:
    return generate


def of_vllm(model: Any) -> Sampler:
    return VllmSampler(model, max_length=64)


@pytest.mark.usefixtures("vllm")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("make", [ours, of_vllm])
def test_what_a_sampler_does(make: Callable[[Any], Sampler], model: Any) -> None:
    sampler = make(model)
    model.train()
    options: dict[str, Any] = {"pad_token_id": EOS, "stop_ids": [EOS], "max_new_tokens": 9}
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    first = sampler(model, PROMPTS, **options, seeds=SEEDS)
    assert [len(response) for response in first] == [9 if EOS not in one else one.index(EOS) + 1 for one in first]
    assert sampler(model, PROMPTS, **options, seeds=SEEDS) == first  # by its seed
    assert sampler(model, PROMPTS[::-1], **options, seeds=SEEDS[::-1]) == first[::-1]  # in the order of the prompts
    assert sampler(model, PROMPTS, **options, seeds=[1, 2, 3]) != first
    assert sampler(model, [], **options, seeds=[]) == []

    stop = first[2][1]
    with_stop: dict[str, Any] = options | {"stop_ids": [EOS, stop]}
    stopped = sampler(model, PROMPTS[2:], **with_stop, seeds=SEEDS[2:])
    assert stopped == [first[2][: first[2].index(stop) + 1]]  # with the token that ends it

    greedy = sampler(model, PROMPTS[:1], **options, temperature=0)
    logits = model.eval()(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    assert greedy[0][0] == int(logits.argmax())
    model.train()

    assert model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    change(model, 2)
    assert sampler(model, PROMPTS, **options, seeds=SEEDS) != first  # by the weights of now
    assert sampler(model, PROMPTS, **options, seeds=SEEDS) == generate(model, PROMPTS, **options, seeds=SEEDS)


@pytest.mark.usefixtures("vllm")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_a_run_samples_with_it(tmp_path: Path) -> None:
    """The stand-in draws what we draw, so the run is the same."""
    options: dict[str, Any] = {"loss": "sdft", "r": 3}
    plain = run_small(tmp_path, "plain", **options)
    sampled = run_small(tmp_path, "sampled", **options, rollout_backend="vllm")
    lengths = [[event.values["response_length"] for event in run.events(Tag.TRAIN)] for run in (plain, sampled)]
    assert lengths[0] == lengths[1]
    weights = trained_weights(plain), trained_weights(sampled)
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name])


def test_without_vllm_a_run_is_refused_before_its_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^rollout_backend: vllm is not installed; pip install vllm, or set "):
        run_small(tmp_path, "run", loss="sdft", rollout_backend="vllm")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{"loss": "grpo"}, {"loss": "sdft", "is_peft": False}, {"loss": "sdft", "r": 600}])
def test_it_is_for_sdft_with_an_adapter(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rollout_backend: vllm samples for sdft with LoRA"):
        small_config(tmp_path, "run", **options, rollout_backend="vllm")


def test_it_is_for_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"vllm samples in one process, not in 2; set transformers"):
        check_distribution(small_config(tmp_path, "run", loss="sdft", rollout_backend="vllm"))
