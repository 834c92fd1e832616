"""A tree of tokens gives what rows of their own give, and is not used where it can't."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.models import BRANCHES, Layout, head_forward, lay_out, layout, padded, response_log_probs
from tutelage.models.layout import takes_trees
from tutelage.models.scoring import Pair, predicting_places, response_hidden

BEGINNING = [5, 6, 7, 8, 9, 10, 14, 15]
SEQUENCES = [
    [*BEGINNING, 11, 12, 2],
    [*BEGINNING, 11, 13, 14, 2],
    [*BEGINNING],  # the beginning of others, and nothing else
    [*BEGINNING, 11, 12, 2],  # twice
    [30, 6, 7],  # begins differently, and goes on alike
    [40],
]


def model_of(attention: str = "sdpa") -> Any:
    model = tiny_model(tiny_tokenizer())
    model.set_attn_implementation(attention)
    return model


def hidden_of(model: nn.Module, laid_out: Layout) -> list[torch.Tensor]:
    hidden_ND = head_forward(model, laid_out.inputs, lambda hidden_BTD, head: hidden_BTD.flatten(0, 1))
    return [hidden_ND[place] for place in laid_out.places]


def test_a_tree_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences 5 6 7, 5 6 8 9, 5 6 and 9 where two tokens are enough to be shared: branches 5 6, 7, 8 9 and 9."""
    monkeypatch.setattr(layout, "SHORTEST_SHARED", 2)
    found = lay_out(model_of(), [[5, 6, 7], [5, 6, 8, 9], [5, 6], [9]])
    assert found.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9, 9]]
    assert found.inputs["position_ids"].tolist() == [[0, 1, 2, 2, 3, 0]]
    branches = found.inputs["branches"]
    assert branches.lengths == [2, 1, 2, 1]
    assert branches.ancestors == [[], [0], [0], []]
    assert branches.mask(2, torch.device("cpu")).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert [place.tolist() for place in found.places] == [[0, 1, 2], [0, 1, 3, 4], [0, 1], [5]]


def test_a_short_beginning_is_not_shared() -> None:
    """Seven tokens stand twice, eight once; below a shared beginning it is the same again."""
    seven, eight = [*range(3, 10)], [*range(3, 11)]
    assert lay_out(model_of(), [[*seven, 20], [*seven, 21]]).inputs["branches"].lengths == [8, 8]
    assert lay_out(model_of(), [[*eight, 20], [*eight, 21]]).inputs["branches"].lengths == [8, 1, 1]
    deeper = [[*eight, 20, *seven, 30], [*eight, 20, *seven, 31], [*eight, 21]]
    found = lay_out(model_of(), deeper).inputs["branches"]
    assert (found.lengths, found.ancestors) == ([8, 8, 1, 1, 1], [[], [0], [0, 1], [0, 1], [0]])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=30), min_size=1, max_size=6),
    st.lists(st.integers(1, 3), max_size=12),
)
def test_every_token_has_its_own_past(endings: list[list[int]], beginning: list[int]) -> None:
    """Whatever is shared: a token's branch and its ancestors hold exactly the tokens before it, in order."""
    sequences = [[*beginning, *ending] for ending in endings]
    found = layout._Tree.of(sequences)
    starts = [sum(found.lengths[:branch]) for branch in range(len(found.lengths))]
    branch_of = [branch for branch, length in enumerate(found.lengths) for _ in range(length)]
    for number, sequence in enumerate(sequences):
        path = found.paths[number]
        assert [found.tokens[place] for place in path] == sequence
        assert [found.depths[place] for place in path] == [*range(len(sequence))]
        branch = branch_of[path[-1]]
        before = [
            place for one in found.ancestors[branch] for place in range(starts[one], starts[one] + found.lengths[one])
        ]
        assert [*before, *range(starts[branch], path[-1] + 1)] == path


def test_a_long_chain_of_beginnings_is_a_tree_too() -> None:
    """Each sequence is the one before it and eight tokens more: as many branches as sequences, each below the last."""
    whole = [token % 50 + 3 for token in range(8 * 1200)]
    tree = layout._Tree.of([whole[: 8 * count] for count in range(1, 1201)])
    assert tree.lengths == [8] * 1200
    assert tree.ancestors[-1] == [*range(1199)]
    assert tree.paths[1199] == [*range(8 * 1200)]


def test_padded_by_hand() -> None:
    found = padded([[5, 6], [7]])
    assert found.inputs["input_ids"].tolist() == [[5, 6], [7, 0]]
    assert found.inputs["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert [place.tolist() for place in found.places] == [[0, 1], [2]]


def test_predicting_places_by_hand() -> None:
    """The tokens before a response: the prompt's last, and all of the response but its last."""
    pairs: list[Pair] = [([5, 6], [7, 8]), ([9], [3]), ([4], [])]
    assert predicting_places(padded([[*prompt, *response] for prompt, response in pairs]), pairs).tolist() == [1, 2, 4]


def test_hidden_states_are_those_of_rows_of_their_own() -> None:
    model = model_of()
    tree = lay_out(model, SEQUENCES)
    assert tree.inputs["input_ids"].shape == (1, 19)  # 8 shared, then 3, 4 and nothing more; 3; 1
    for found_TD, expected_TD in zip(hidden_of(model, tree), hidden_of(model, padded(SEQUENCES)), strict=True):
        torch.testing.assert_close(found_TD, expected_TD, rtol=1e-5, atol=1e-5)


def test_the_model_attends_as_before_where_there_are_no_branches() -> None:
    """Bit for bit, also with padding on the left; and what is saved of the configuration knows nothing of it."""
    inputs = {"input_ids": torch.tensor([[0, 5, 6], [7, 8, 9]]), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}
    model = model_of()
    before, config = model(**inputs).logits, model.config.to_json_string()
    assert takes_trees(model)
    assert torch.equal(model(**inputs).logits, before)
    assert model.config.to_json_string() == config


def test_attention_that_knows_of_no_branches_fails() -> None:
    model = model_of()
    tree = lay_out(model, SEQUENCES)
    model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="size"):
        hidden_of(model, tree)


def test_gradients_of_branches_add_up() -> None:
    gradients: list[list[torch.Tensor]] = []
    for make in (lay_out, lambda model, sequences: padded(sequences)):
        model = model_of().double()
        states = hidden_of(model, make(model, SEQUENCES))
        sum((number + 1) * state.sin().sum() for number, state in enumerate(states)).backward()  # pyright: ignore
        gradients.append([parameter.grad for parameter in model.base_model.parameters()])
    for tree, rows in zip(*gradients, strict=True):
        assert float((tree - rows).abs().max()) <= 1e-5 * float(rows.abs().max())  # norms are float32


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_choices_are_scored_as_one_by_one(batch_size: int) -> None:
    model = model_of()
    choices = [[10, 11, 12, 2], [10, 11, 13, 14, 2], [10, 11, 2], [60], [60, 61], [10, 11, 2]]
    pairs: list[Pair] = [([5, 6, 7, 8], choice) for choice in choices] + [([9] * 20, [30, 31, 2]), ([3], [50])]
    alone = [response_log_probs(model, [pair])[0] for pair in pairs]
    for found, expected in zip(response_log_probs(model, pairs, batch_size), alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_eager_attention_gets_rows_of_their_own() -> None:
    assert "branches" not in lay_out(model_of("eager"), SEQUENCES).inputs


def test_windows_are_not_replaced_by_the_mask() -> None:
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=3,
    )
    assert not takes_trees(MistralForCausalLM(config))
    config.sliding_window = None
    assert takes_trees(MistralForCausalLM(config))


def test_a_window_under_another_name_is_a_window() -> None:
    """GPT-Neo's local layers look back 256 places in the row, not in the sequence."""
    config = GPTNeoConfig(
        vocab_size=64, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]
    )
    model = GPTNeoForCausalLM(config)
    model.set_attn_implementation("eager")
    assert not takes_trees(model)


def test_rounding_hides_a_difference_so_half_precision_gets_rows() -> None:
    model = model_of()
    assert takes_trees(model)
    assert not takes_trees(model.bfloat16())


def test_a_layer_that_carries_a_state_gets_rows_of_its_own() -> None:
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4)
    assert not takes_trees(MambaForCausalLM(config))


def test_a_model_that_takes_branches_and_ignores_them_is_found_out() -> None:
    model: Any = model_of()
    forward = model.base_model.forward
    model.base_model.forward = lambda input_ids, position_ids=None, attention_mask=None, **options: forward(
        input_ids=input_ids, position_ids=position_ids, use_cache=False
    )
    assert not takes_trees(model)
    model = model_of()
    model.base_model.forward = forward_that_refuses
    assert not takes_trees(model)


def forward_that_refuses(position_ids: Any = None, **inputs: Any) -> Any:
    raise ValueError("a mask of each position over each other is not for me")


@pytest.mark.parametrize("taken", [True, False])
def test_parts_with_attention_of_their_own_keep_it(taken: bool) -> None:
    """A model of images and text whose encoder of images is eager: only what was sdpa changes, and only when taken."""
    text = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    image = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2}
    config = LlavaConfig(text_config=text | heads, vision_config=image | heads, image_token_index=63)
    model: Any = LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation({"": "sdpa", "text_config": "sdpa", "vision_config": "eager"})
    if not taken:
        model.base_model.forward = forward_that_refuses
    assert takes_trees(model) is taken
    expected = BRANCHES if taken else "sdpa"
    found = [one._attn_implementation for one in (model.config, model.config.text_config, model.config.vision_config)]
    assert found == [expected, expected, "eager"]


def test_training_mode_comes_back() -> None:
    model = model_of().train()
    response_hidden(model, [([5, 6], [7])])
    response_log_probs(model, [([5, 6], [7])])
    assert model.training
    assert torch.is_grad_enabled()
