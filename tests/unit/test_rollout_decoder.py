"""The decoder that samples, held to `transformers`: the same logits, the same greedy tokens, and no trace left."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tutelage.rollouts import engine, generate, rollout_seed
from tutelage.rollouts.decoder import Decoder, Piece
from tutelage.rollouts.supported_models import read_decoder

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

VOCABULARY = 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPTS = [[5, 6, 7], [8], [5, 6, 7, 10, 11, 12], [8], [20, 21, 22, 23, 24, 25, 26, 27, 28], [5, 6, 7, 10], [40] * 17]


def seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def llama(**options: Any) -> Any:
    return seeded(lambda: LlamaForCausalLM(LlamaConfig(**(SIZES | options))))


def qwen2(**options: Any) -> Any:
    """Its queries, keys and values have biases, which are not left at zero."""
    model = seeded(lambda: Qwen2ForCausalLM(Qwen2Config(**(SIZES | options))))
    return with_noise(model, ".bias")


def qwen3(**options: Any) -> Any:
    """Heads of a width that is not hidden size / heads, with norms of their own, which are not left at one."""
    model = seeded(lambda: Qwen3ForCausalLM(Qwen3Config(**(SIZES | {"head_dim": 32} | options))))
    return with_noise(model, "_norm.weight")


def with_noise(model: Any, ending: str) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(ending):
                parameter += torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def with_lora(model: nn.Module, **options: Any) -> Any:
    """An adapter with a B that is not zero."""
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR, "lora_dropout": 0.1}
    adapted = seeded(lambda: get_peft_model(model, LoraConfig(**(settings | options))))  # pyright: ignore[reportArgumentType]
    return with_noise(adapted, "lora_B.default.weight")


FAMILIES = {
    "llama": llama,
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "llama, biases": lambda: with_noise(llama(attention_bias=True, mlp_bias=True), ".bias"),
    "llama, eager": lambda: llama(attn_implementation="eager"),
    "llama, scaled rotation": lambda: llama(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
    "mistral": lambda: seeded(lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None))),
    "qwen2": qwen2,
    "qwen3": qwen3,
    "llama with LoRA": lambda: with_lora(llama()),
    "qwen3 with LoRA on some layers": lambda: with_lora(qwen3(), target_modules=["q_proj", "up_proj"]),
}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]()


def decoder_of(model: Any) -> Decoder:
    model.eval()
    with torch.no_grad():
        decoder = read_decoder(model)
    assert decoder is not None
    return decoder


def roll(model: Any, prompts: list[list[int]] = PROMPTS, **options: Any) -> list[list[int]]:
    defaults: dict[str, Any] = {"pad_token_id": 0, "stop_ids": [3, 4], "max_new_tokens": 24, "temperature": 0.0}
    return generate(model, prompts, **(defaults | options))


def by_transformers(model: Any, prompt: list[int], count: int = 24) -> list[int]:
    ids = torch.tensor([prompt])
    given = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=[3, 4],
    )
    return given[0, len(prompt) :].tolist()


def through_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.rollouts.sampling.read_decoder", lambda model: None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_greedy_tokens_are_those_of_transformers(model: Any, dtype: torch.dtype) -> None:
    model.to(dtype)
    decoder_of(model)
    assert roll(model) == [by_transformers(model, prompt) for prompt in PROMPTS]


def test_every_step_has_the_logits_of_the_whole_sequence(model: Any) -> None:
    """float64, to 1e-10: a prefill of three rows, one of which inherits five tokens, then four steps.

    To 1e-5 where the model's own attention takes its softmax in float32.
    """
    model.double()
    tolerance = 1e-5 if model.config._attn_implementation == "eager" else 1e-10
    decoder = decoder_of(model)
    tokens = [list(range(7 + row, 27 + row)) for row in range(3)]
    tokens[1][:5] = tokens[0][:5]
    lengths = [16, 9, 1]
    cache, rotations = decoder.cache(3, 20), decoder.rotations(20)
    pieces = [
        Piece(0, tokens[0], 0, 10),
        Piece(1, tokens[1], 5, 9, inherited_from=0, inherited=5),
        Piece(2, tokens[2], 0, 1),
    ]
    with torch.no_grad():
        states = decoder.prefill(pieces, cache, rotations)
        rest = decoder.prefill([Piece(0, tokens[0], 10, 16)], cache, rotations)
        found = [torch.stack([rest[-1], states[13], states[14]])]
        for step in range(4):
            present = [length + step for length in lengths]
            next_N = torch.tensor([row[length] for row, length in zip(tokens, present, strict=True)])
            found.append(decoder.step(next_N, present, cache, rotations))
        expected_RTH = model(torch.tensor(tokens), output_hidden_states=True).hidden_states[-1]
    for row, length in enumerate(lengths):
        for step, states in enumerate(found):
            expected_H = expected_RTH[row, length + step - 1]
            torch.testing.assert_close(states[row], expected_H, rtol=tolerance, atol=tolerance)


def test_logits_are_the_heads_in_float32(model: Any) -> None:
    decoder = decoder_of(model)
    ids = torch.tensor([PROMPTS[4]])
    room = torch.full((12, VOCABULARY), float("nan"))
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
        found = decoder.logits(output.hidden_states[-1][0], room)
    assert found.data_ptr() == room.data_ptr()
    torch.testing.assert_close(found, output.logits[0])


# --- a row depends on nothing but itself --------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 32])
def test_rows_that_come_and_go_are_those_that_are_alone(batch_size: int) -> None:
    """Thirty prompts, many of which begin alike and some of which are the same, in float64."""
    model = with_lora(llama()).double()
    generator = torch.Generator().manual_seed(3)
    prompts = [
        [5, 6, 7, 8][: 1 + row % 4] + torch.randint(5, 9, (row % 5,), generator=generator).tolist() for row in range(30)
    ]
    seeds = [rollout_seed(1, row) for row in range(30)]
    options: dict[str, Any] = {"temperature": 1.5, "max_new_tokens": 20, "stop_ids": list(range(10, 20))}
    alone = [roll(model, [prompt], seeds=[seed], **options)[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    assert len({len(response) for response in alone}) > 8  # they end at lengths of their own
    assert roll(model, prompts, seeds=seeds, batch_size=batch_size, **options) == alone


def test_transformers_draws_the_same_tokens_from_the_same_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_lora(qwen3()).double()
    decoder_of(model)
    options: dict[str, Any] = {"seeds": range(7), "temperature": 0.8, "top_p": 0.9, "min_new_tokens": 3}
    own = roll(model, **options)
    through_transformers(monkeypatch)
    assert roll(model, **options) == own


def test_a_long_prompt_in_pieces_and_one_that_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama().double()
    long = [5 + place % 7 for place in range(40)]
    prompts = [long, long, long[:30], [*long, 9], [6]]
    whole = roll(model, prompts)
    monkeypatch.setattr("tutelage.rollouts.engine.LONGEST_PREFILL", 8)
    assert roll(model, prompts) == whole == [by_transformers(model, prompt) for prompt in prompts]
    assert roll(model, prompts, batch_size=1) == whole


def test_what_prompts_share_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens 5 6 7 8 and two different ends; the second of two equal prompts is copied as a whole."""
    model = llama()
    decoder_of(model)
    computed: list[tuple[int, int]] = []
    prefill = Decoder.prefill

    def counted(self: Decoder, pieces: Any, *rest: Any) -> Any:
        computed.extend((piece.start, piece.end) for piece in pieces)
        return prefill(self, pieces, *rest)

    monkeypatch.setattr(Decoder, "prefill", counted)
    responses = roll(model, [[5, 6, 7, 8, 9], [5, 6, 7, 8, 10], [5, 6, 7, 8, 9]])
    assert computed == [(0, 5), (5, 5), (4, 5)]
    assert responses[0] == responses[2]


def test_one_token_each() -> None:
    model = llama()
    expected = [by_transformers(model, prompt, 1) for prompt in PROMPTS]
    assert roll(model, max_new_tokens=1) == roll(model, max_new_tokens=1, batch_size=2) == expected


def test_stop_when_is_asked_with_each_row_as_it_grows() -> None:
    model = llama()
    whole = roll(model, stop_ids=[], max_new_tokens=6)
    seen: list[list[int]] = []

    def is_done(response: list[int]) -> bool:
        seen.append(response)
        return len(response) == 2 + response[0] % 3

    assert roll(model, stop_ids=[], max_new_tokens=6, stop_when=is_done) == [row[: 2 + row[0] % 3] for row in whole]
    assert sorted(seen) == sorted(row[:length] for row in whole for length in range(1, 3 + row[0] % 3))


def test_no_turn_ends_before_min_new_tokens() -> None:
    """With every token but 7 a stop, row after row: two tokens 7, then the best there is."""
    model, stops = llama(), [token for token in range(VOCABULARY) if token != 7]
    for response in roll(model, stop_ids=stops, min_new_tokens=2):
        assert response[:2] == [7, 7]
        assert response[-1] != 7
        assert set(response[2:-1]) <= {7}


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "prompt 1 .from 0. has no token"),
        ([5], {"max_new_tokens": 0}, "max_new_tokens=0 leaves no token"),
    ],
)
def test_what_leaves_nothing_to_sample_is_refused(prompt: list[int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        roll(llama(), [[5], prompt], **options)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_rows_that_end_with_their_first_token(batch_size: int) -> None:
    model = llama().double()
    firsts = [by_transformers(model, prompt, 1) for prompt in PROMPTS]
    stops = sorted({token for first in firsts for token in first})
    assert roll(model, stop_ids=stops, batch_size=batch_size) == firsts


def test_min_new_tokens_is_that_of_transformers() -> None:
    model = llama().double()
    stops = sorted({by_transformers(model, prompt, 1)[0] for prompt in PROMPTS})
    expected: list[list[int]] = []
    for prompt in PROMPTS:
        given = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=12,
            min_new_tokens=4,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=stops,
        )
        expected.append(given[0, len(prompt) :].tolist())
    assert roll(model, stop_ids=stops, min_new_tokens=4, max_new_tokens=12, batch_size=3) == expected


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_long_prompt_does_not_lengthen_the_others(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    """A token is 2 · 3 layers · 2 heads · 16 · 8 bytes = 1536 bytes here. Room for 200 of them: the prompt of 92 tokens
    with 8 new ones alone, 1 · 100; then six short ones of up to 5 + 8 in six rows, 6 · 13. Without a bound 7 · 100.
    """
    model = llama().double()
    decoder_of(model)
    prompts = [[5, 6], [7], [*range(4, 96)], [8, 9, 10, 11, 12], [8, 9], [20], [5, 6]]
    options: dict[str, Any] = {"temperature": temperature, "seeds": range(7), "max_new_tokens": 8}
    made: list[tuple[int, int]] = []
    cache = Decoder.cache

    def counted(self: Decoder, rows: int, length: int) -> Any:
        made.append((rows, length))
        return cache(self, rows, length)

    monkeypatch.setattr(Decoder, "cache", counted)
    expected = roll(model, prompts, **options)
    monkeypatch.setattr(engine, "CACHE_BYTES", 200 * 1536)
    assert roll(model, prompts, **options) == expected
    assert made == [(7, 100), (1, 100), (6, 13)]


def test_fewer_rows_where_the_bytes_do_not_suffice() -> None:
    """Tokens of each prompt, rows at a time, tokens there is room for; one place more where prompts wait."""
    assert engine._alike([10, 10, 10], 2, 30) == [([0, 1, 2], 2)]
    assert engine._alike([10, 10, 10], 3, 30) == [([0, 1, 2], 3)]
    assert engine._alike([10, 10, 10], 2, 29) == [([0, 1, 2], 1)]
    assert engine._alike([10, 10, 10], 2, 5) == [([0, 1, 2], 1)]
    assert engine._alike([4, 10, 6, 5, 3], 4, 30) == [([1, 2], 2), ([0, 3, 4], 3)]


def test_fewer_rows_than_asked_for_are_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = llama().double()
    decoder_of(model)
    engine._say_that_rows_are_few.cache_clear()
    monkeypatch.setattr(engine, "CACHE_BYTES", 60 * 1536)  # of 26 tokens for each row two, or one if others wait
    with caplog.at_level("INFO", logger=engine.__name__):
        for _ in range(2):
            roll(model, [[5, 6], [7, 8], [9, 10]], batch_size=3)
        roll(model, [[5, 6], [7, 8]], batch_size=2)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "responses are sampled 1 at a time and not 3"
    ]


# --- rotations ----------------------------------------------------------------------------------------------------

LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN: dict[str, Any] = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize("rotation", [LLAMA3, YARN], ids=["llama3", "yarn"])
def test_scaled_rotations_within_the_original_context_and_beyond(rotation: dict[str, Any]) -> None:
    """32 tokens is the original context: prompts of 3 and of 60; one of 20 grows out of it."""
    model = llama(rope_parameters=rotation, num_hidden_layers=2).double()
    decoder_of(model)
    prompts = [[5, 6, 7], [5 + place * 7 % 80 for place in range(60)], [5 + place % 11 for place in range(20)]]
    expected = [by_transformers(model, prompt) for prompt in prompts]
    assert roll(model, prompts) == expected
    plain = llama(num_hidden_layers=2).double()
    assert expected != [by_transformers(plain, prompt) for prompt in prompts]  # the rotation matters


# --- adapters -----------------------------------------------------------------------------------------------------


def test_several_adapters_add_up_and_one_that_is_off_adds_nothing() -> None:
    model = with_lora(llama()).double()
    plain = roll(model)
    model.add_adapter("second", LoraConfig(r=2, lora_alpha=16, target_modules=["v_proj", "down_proj"]))
    with_noise(model, "lora_B.second.weight")
    model.double()
    assert roll(model) == plain
    model.base_model.set_adapter(["default", "second"])
    both = roll(model)
    assert both == [by_transformers(model, prompt) for prompt in PROMPTS] != plain
    with model.disable_adapter():
        decoder_of(model)
        assert roll(model) == roll(llama().double())
    model.merge_adapter()
    decoder_of(model)
    assert roll(model) == both


@pytest.mark.parametrize("layers", [ALL_LINEAR, ["q_proj"], ["lm_head"]])
def test_the_trial_sees_an_adapter_that_adds_nothing_yet(monkeypatch: pytest.MonkeyPatch, layers: list[str]) -> None:
    """B is zero: a decoder that leaves adapters out has the model's logits, but must not be taken for it."""
    model = seeded(lambda: get_peft_model(llama(), LoraConfig(r=4, target_modules=layers)))
    before = copy.deepcopy(model.state_dict())
    assert decoder_of(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model = seeded(lambda: get_peft_model(llama(), LoraConfig(r=4, target_modules=layers)))
    monkeypatch.setattr("tutelage.rollouts.products._joined_adapters", lambda layers: (None, None))
    assert read_decoder(model) is None


def test_an_adapter_on_the_head() -> None:
    model = with_lora(llama(), target_modules=["lm_head", "q_proj"]).double()
    decoder_of(model)
    assert roll(model) == [by_transformers(model, prompt) for prompt in PROMPTS] != roll(llama().double())


def test_a_trial_in_training_mode_is_none_of_dropout() -> None:
    model = with_lora(llama()).train()
    assert read_decoder(model) is not None
    assert all(module.training for module in model.modules())


# --- what is not known is left to transformers --------------------------------------------------------------------


def windowed() -> Any:
    return seeded(lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)))


def other_architecture() -> Any:
    return seeded(lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2)))


def hooked() -> Any:
    model = llama()
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: output * 0.5)
    return model


def with_other_forward() -> Any:
    model = llama()
    attention = model.model.layers[1].self_attn
    original = attention.forward
    attention.forward = lambda *args, **kwargs: original(*args, **kwargs)
    return model


def rescaled() -> Any:
    """One layer's attention is sharper than the others': only the trial can know."""
    model = llama()
    model.model.layers[1].self_attn.scaling *= 2
    return model


def with_other_norm() -> Any:

    class Doubled(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.weight, self.variance_epsilon, self.inner = inner.weight, inner.variance_epsilon, inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.inner(x)

    model = llama()
    model.model.layers[1].input_layernorm = Doubled(model.model.layers[1].input_layernorm)
    return model


UNKNOWN = {
    "a window": windowed,
    "another architecture": other_architecture,
    "a hook": hooked,
    "a forward of somebody's own": with_other_forward,
    "another scaling": rescaled,
    "another norm": with_other_norm,
    "a rotation that depends on the length": lambda: llama(
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    ),
    "another activation": lambda: llama(hidden_act="gelu"),
    "DoRA": lambda: with_lora(llama(), use_dora=True),
    "biases in the adapter": lambda: with_lora(llama(attention_bias=True, mlp_bias=True), lora_bias=True),
    "a head that is trained": lambda: with_lora(llama(), modules_to_save=["lm_head"]),
    "two types": lambda: halved_embedding(llama()),
}


def halved_embedding(model: Any) -> Any:
    model.model.norm.double()
    return model


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_known_goes_the_general_way(make: Callable[[], Any]) -> None:
    model = make()
    with torch.no_grad():
        assert read_decoder(model) is None


@pytest.mark.parametrize("name", ["a window", "a hook", "another scaling", "another norm", "DoRA"])
def test_the_general_way_has_the_tokens_of_transformers(name: str) -> None:
    model = UNKNOWN[name]()
    assert roll(model) == [by_transformers(model, prompt) for prompt in PROMPTS]


def test_a_row_of_nan_spoils_none_that_comes_after_it() -> None:
    """Token 90 is embedded as NaN. Whatever its row left behind, those that take its place are what they are alone."""
    model = llama()
    with torch.no_grad():
        model.get_input_embeddings().weight[90] = float("nan")
    prompts = [[4] * 30, [5, *[90] * 25], [8, 9], [10, 11, 12]]
    settings: dict[str, Any] = {"pad_token_id": 2, "stop_ids": [0], "max_new_tokens": 5, "temperature": 0}
    assert read_decoder(model) is not None
    together = generate(model, prompts, **settings, batch_size=2)
    for index in (0, 2, 3):
        assert together[index] == generate(model, [prompts[index]], **settings)[0]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_prompt_of_nan_spoils_none_that_begins_like_it(batch_size: int) -> None:
    """Token 90 is embedded as NaN. Prompts are taken in lexical order: this one's keys and values are there first."""
    model = llama()
    with torch.no_grad():
        model.get_input_embeddings().weight[90] = float("nan")
    prompts = [[5, 6, 7, 8, 90, 90], [5, 6, 7, 8, 91, 10], [5, 6, 7, 8, 91, 11]]
    settings: dict[str, Any] = {"pad_token_id": 2, "stop_ids": [0], "max_new_tokens": 5, "temperature": 0}
    together = generate(model, prompts, **settings, batch_size=batch_size)
    assert together == [generate(model, [prompt], **settings)[0] for prompt in prompts]


def test_a_decoder_is_gone_when_nobody_has_it() -> None:
    """At once, and not when cycles are looked for: it holds copies of adapters, and weights that may be replaced."""
    decoder = decoder_of(with_lora(llama()))
    cache, rotations = decoder.cache(2, 4), decoder.rotations(4)
    gc.disable()
    try:
        decoder.step(torch.tensor([5, 6]), [0, 0], cache, rotations)
        assert decoder.step_in_blocks is not None
        gone = weakref.ref(decoder)
        del decoder
        assert gone() is None
    finally:
        gc.enable()


def test_the_default_type_is_not_asked() -> None:
    model = llama()
    expected = roll(model)
    torch.set_default_dtype(torch.float64)
    try:
        assert roll(model) == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_hook_of_gradient_checkpointing_is_no_obstacle() -> None:
    model = llama()
    model.enable_input_require_grads()
    assert model.get_input_embeddings()._forward_hooks
    assert read_decoder(model) is not None


def test_a_batch_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=0 leaves no row"):
        generate(
            llama(),
            [[5]],
            pad_token_id=2,
            stop_ids=[2],
            max_new_tokens=1,
            temperature=0,
            batch_size=0,
        )


def test_hooks_that_only_capture_outputs_are_no_obstacle() -> None:
    model = llama()
    with torch.no_grad():
        model(torch.tensor([[5, 6]]), output_hidden_states=True)
    assert model.model.layers[0]._forward_hooks
    decoder_of(model)


def test_the_log_says_once_why(caplog: pytest.LogCaptureFixture) -> None:
    model = hooked()
    with caplog.at_level("INFO", logger="tutelage"):
        for _ in range(2):
            assert read_decoder(model) is None
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert record.getMessage() == (
        "LlamaForCausalLM is sampled by transformers, which is slower than our own decoder: "
        "model.layers.0.mlp has a hook"
    )


def test_logits_that_are_not_finite_for_once_decide_nothing() -> None:
    model = llama()
    weight = model.model.norm.weight.detach()
    kept = weight.clone()
    weight.fill_(float("nan"))
    assert read_decoder(model) is None
    weight.copy_(kept)
    decoder_of(model)


def test_a_layer_with_fewer_heads_than_the_configuration_says_goes_the_general_way() -> None:
    """Heads pruned from one layer: transformers takes their number from the weights."""
    model = llama()
    attention = model.model.layers[1].self_attn
    for name, width in (("q_proj", 32), ("k_proj", 16), ("v_proj", 16)):
        setattr(attention, name, seeded(lambda width=width: nn.Linear(64, width, bias=False)))
    attention.o_proj = seeded(lambda: nn.Linear(32, 64, bias=False))
    assert read_decoder(model) is None
    assert roll(model) == [by_transformers(model, prompt) for prompt in PROMPTS]


# --- what is left behind ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raises", [False, True])
def test_no_bit_of_the_model_changes(raises: bool) -> None:
    model = with_lora(llama())
    model.train()
    model.base_model.model.model.layers[0].eval()
    before = copy.deepcopy(model.state_dict())
    modes, config = [module.training for module in model.modules()], model.config.to_dict()
    random = torch.get_rng_state()

    def is_done(response: list[int]) -> bool:
        if raises and len(response) == 3:
            raise RuntimeError("asked too often")
        return False

    if raises:
        with pytest.raises(RuntimeError, match="asked too often"):
            roll(model, stop_when=is_done)
    else:
        roll(model, stop_when=is_done)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert model.config.to_dict() == config
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


def test_the_engine_reads_the_present_weights() -> None:
    model = with_lora(llama())
    before = roll(model)
    with_noise(model, "lora_A.default.weight")
    assert roll(model) == [by_transformers(model, prompt) for prompt in PROMPTS] != before


def test_places_are_filled_several_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight places, seventeen prompts that end after one to four tokens: at least two prompts a prefill."""
    admitted: list[int] = []
    admit = engine.Engine._admit

    def counted(self: engine.Engine, rows: Any) -> None:
        admitted.append(len(rows))
        admit(self, rows)

    monkeypatch.setattr(engine.Engine, "_admit", counted)
    prompts = [[5 + row] for row in range(17)]
    ends: dict[str, Any] = {"stop_ids": [], "max_new_tokens": 4, "stop_when": lambda response: sum(response) % 3 == 0}
    roll(llama(), prompts, batch_size=8, **ends)
    assert sum(admitted) == 17
    assert admitted[0] == 8
    assert min(admitted[:-1]) >= 2
