"""The step in buffers and blocks, held to the same step in plain words (`Decoder.step_plainly`) and to formulas."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tutelage.rollouts.decoder import Decoder, Piece
from tutelage.rollouts.layers import Norm
from tutelage.rollouts.products import MANY_ROWS, Adapter, Linear, Room, SideBySide
from tutelage.rollouts.step import MOST_ROWS
from tutelage.rollouts.supported_models import read_decoder

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
HEADS_OF_THEIR_OWN: dict[str, Any] = SIZES | {"num_key_value_heads": 6}
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODELS: dict[str, Any] = {
    "three queries a key head": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "a key head a query": lambda: LlamaForCausalLM(LlamaConfig(**HEADS_OF_THEIR_OWN)),
    "biases everywhere": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "biases of queries, keys and values": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "norms of queries and keys": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32)),
    "adapters": lambda: adapted(LlamaForCausalLM(LlamaConfig(**SIZES)), LAYERS),
    "adapters of other ranks": lambda: adapted(
        Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32)), LAYERS, rank_pattern={"layers.1.*.v_proj": 2}
    ),
    "adapters here and there": lambda: adapted(Qwen2ForCausalLM(Qwen2Config(**SIZES)), ["v_proj", "gate_proj"]),
    "an adapter in one layer": lambda: adapted(LlamaForCausalLM(LlamaConfig(**SIZES)), LAYERS, layers_to_transform=[1]),
}


def adapted(model: Any, layers: list[str], **options: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=layers, **options))


def made(name: str) -> Any:
    """No bias, norm or adapter is left at what it begins with."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        for name, parameter in model.named_parameters():
            if "bias" in name or "norm" in name or "lora_B" in name:
                parameter += 0.3 * torch.randn(parameter.shape)
    return model


def decoder_of(model: Any) -> Decoder:
    with torch.no_grad():
        decoder = read_decoder(model)
    assert decoder is not None
    return decoder


def rows_in_buffers(decoder: Decoder) -> int | None:
    """For how many rows the decoder has buffers now."""
    return decoder.step_in_blocks.buffers.rows if decoder.step_in_blocks and decoder.step_in_blocks.buffers else None


def prompts(rows: int) -> list[list[int]]:
    """Of 3, 7, 11, 3, 7, … tokens."""
    return [[5 + (row * 7 + place * 3) % 90 for place in range(3 + row % 3 * 4)] for row in range(rows)]


def stepped(decoder: Decoder, rows: int, *, plainly: bool) -> tuple[Tensor, Tensor]:
    """Hidden states of three steps, the last row gone before the third, [3 · rows − 1, H]; keys and values."""
    asked = prompts(rows)
    cache, rotations = decoder.cache(rows, 16), decoder.rotations(16)
    step = decoder.step_plainly if plainly else decoder.step
    found: list[Tensor] = []
    with torch.no_grad():
        decoder.prefill([Piece(row, ids, 0, len(ids)) for row, ids in enumerate(asked)], cache, rotations)
        for count, present in enumerate((rows, rows, rows - 1)):
            tokens_N = torch.arange(present) % 90 + count
            found.append(step(tokens_N, [len(ids) + count for ids in asked[:present]], cache, rotations))
        return torch.cat(found), torch.stack([cache.layer(index) for index in range(len(decoder.layers))])


@pytest.mark.parametrize("rows", [2, 3, 16, MOST_ROWS])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_in_blocks_is_the_step_in_plain_words(name: str, rows: int) -> None:
    """Rows of unequal length, of two the first one alone at the end; float32 rounds hidden states of size 1 to 10 by
    1e-6 at most, twice in a row."""
    decoder = decoder_of(made(name))
    expected_NH, kept = stepped(decoder, rows, plainly=True)
    assert rows_in_buffers(decoder) is None
    found_NH, kept_too = stepped(decoder, rows, plainly=False)
    assert rows_in_buffers(decoder) == rows - 1
    torch.testing.assert_close(found_NH, expected_NH, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(kept_too, kept, rtol=2e-5, atol=2e-5)


def test_what_a_step_gives_is_not_overwritten_by_the_next_and_autograd_takes_it() -> None:
    decoder = decoder_of(made("adapters"))
    cache, rotations = decoder.cache(2, 4), decoder.rotations(4)
    first_NH = decoder.step(torch.tensor([5, 6]), [0, 0], cache, rotations)
    kept_NH = first_NH.clone()
    decoder.step(torch.tensor([7, 8]), [1, 1], cache, rotations)
    assert torch.equal(first_NH, kept_NH)
    assert not first_NH.is_inference()
    scale = torch.tensor(2.0, requires_grad=True)
    (first_NH * scale).sum().backward()
    torch.testing.assert_close(scale.grad, kept_NH.sum())


@pytest.mark.parametrize(("rows", "dtype"), [(MOST_ROWS + 1, torch.float32), (3, torch.float64)])
def test_many_rows_and_other_types_go_the_plain_way(rows: int, dtype: torch.dtype) -> None:
    decoder = decoder_of(made("adapters").to(dtype))
    cache, rotations = decoder.cache(rows, 2), decoder.rotations(2)
    decoder.step(torch.full((rows,), 7), [0] * rows, cache, rotations)
    assert rows_in_buffers(decoder) is None


def test_weights_that_do_not_lie_row_after_row_go_the_plain_way() -> None:
    model = made("three queries a key head")
    projection = model.model.layers[1].mlp.up_proj
    projection.weight.data = projection.weight.data.T.contiguous().T
    decoder = decoder_of(model)
    assert decoder.step_in_blocks is None
    found_NH, _ = stepped(decoder, 3, plainly=False)
    expected_NH, _ = stepped(decoder_of(made("three queries a key head")), 3, plainly=False)
    torch.testing.assert_close(found_NH, expected_NH, rtol=2e-5, atol=2e-5)


def test_sizes_without_blocks_go_the_plain_way() -> None:
    """100 has no divisor of 16 and more that 64 has."""
    model = LlamaForCausalLM(LlamaConfig(**(SIZES | {"intermediate_size": 100}))).eval()
    assert decoder_of(model).step_in_blocks is None


@pytest.mark.parametrize("name", ["norms of queries and keys", "biases of queries, keys and values", "adapters"])
def test_steps_in_bfloat16_are_as_exact_as_the_model_itself(name: str) -> None:
    """Logits of a prompt's last token and of five steps, against the same weights in float32: the mean error of a row
    is at most half as much again as that of the model's own forward pass in bfloat16, which is 1 to 3 %."""
    model = made(name).to(torch.bfloat16)
    decoder = decoder_of(model)
    tokens_NT = torch.tensor([[5 + (row * 31 + place * 7) % 90 for place in range(9)] for row in range(3)])
    cache, rotations = decoder.cache(3, 9), decoder.rotations(9)
    with torch.no_grad():
        own_NTV = model(input_ids=tokens_NT).logits.float()[:, 3:]
        pieces = [Piece(row, ids, 0, 4) for row, ids in enumerate(tokens_NT.tolist())]
        states = [decoder.prefill(pieces, cache, rotations)[3::4]]
        for place in range(4, 9):
            states.append(decoder.step(tokens_NT[:, place], [place] * 3, cache, rotations))
        found_NTV = decoder.logits(torch.stack(states, dim=1).flatten(0, 1), torch.empty(18, 96)).view(3, 6, 96)
        exact_NTV = model.float()(input_ids=tokens_NT).logits[:, 3:]
    own, found = ((each - exact_NTV).norm(dim=-1) / exact_NTV.norm(dim=-1) for each in (own_NTV, found_NTV))
    assert 0.003 < float(own.mean()) < 0.05
    assert float(found.mean()) < 1.5 * float(own.mean())


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6, 1e4])
def test_a_norm_into_a_buffer_is_its_formula(size: float) -> None:
    """x / √(mean(x²) + ε) · w in float64; at size 1e-3 the ε of 1e-6 is half of it, at 1e-6 it is nearly all."""
    generator = torch.Generator().manual_seed(2)
    x_AMD = torch.randn(3, 4, 48, generator=generator) * size
    norm = Norm(torch.randn(48, generator=generator), 1e-6)
    wide_AMD = x_AMD.double()
    expected_AMD = wide_AMD / (wide_AMD.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    out_AMD = torch.full_like(x_AMD, float("nan"))
    norm.into(x_AMD, out_AMD)
    torch.testing.assert_close(out_AMD.double(), expected_AMD, rtol=2e-6, atol=0.0)
    norm.into(x_AMD, x_AMD)
    assert torch.equal(x_AMD, out_AMD)


@pytest.mark.parametrize("rows", [4, MANY_ROWS + 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_that_is_added_is_the_product_and_a_sum(rows: int, dtype: torch.dtype) -> None:
    """With bias and adapter; in bfloat16 to the bit, for there a sum is rounded after the product was."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    layer = Linear(random(24, 10), random(24), (Adapter(random(2, 10), random(24, 2)),))
    x_MK, total_MN = random(rows, 10), random(rows, 24)
    expected_MN = total_MN + SideBySide([layer])(x_MK)
    SideBySide([layer]).add_to(total_MN, x_MK)
    exact = dtype == torch.bfloat16
    torch.testing.assert_close(total_MN, expected_MN, rtol=0.0 if exact else 1e-5, atol=0.0 if exact else 1e-5)


def test_blocks_are_the_group_side_by_side() -> None:
    """Widths 24 and 12 in blocks of 4, with biases, of which one is missing, and adapters of rank 2 and 3."""
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    layers = [
        Linear(random(24, 10), random(24), (Adapter(random(2, 10), random(24, 2)),)),
        Linear(random(12, 10), None, (Adapter(random(3, 10), random(12, 3)),)),
    ]
    group, x_MK = SideBySide(layers), random(5, 10)
    blocks = group.blocks(4)
    assert blocks.counts == [6, 3]
    room = Room(x_MK, torch.full((9, 5, 4), float("nan")), blocks.counts)
    blocks(room)
    torch.testing.assert_close(room.out_BMW.transpose(0, 1).reshape(5, 36), group(x_MK), rtol=1e-5, atol=1e-5)
    assert blocks.weights[0].data_ptr() == layers[0].weight.data_ptr()
