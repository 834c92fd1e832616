"""The memory of a run by hand: a model small enough to count, and the page that has the table."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.memory import MODELS, table
from tutelage.config import TrainingConfig
from tutelage.config.memory import ModelShape, Placement, memory_of
from tutelage.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SMALL = ModelShape(vocabulary=100, width=8, layers=2, inner=16, heads=2, key_heads=1, head_width=4, tied=True)
IN_A_LAYER = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 16
"""q, k, v, o, and the gated layer's three: 576."""
PARAMETERS = 2 * IN_A_LAYER + 100 * 8 + 5 * 8
ADAPTER = 2 * 3 * (16 + 12 + 12 + 16 + 24 + 24 + 24)
"""Of rank 3 in two layers: inputs and outputs of the seven."""


def config(**options: Any) -> TrainingConfig:
    usual: dict[str, Any] = {
        "model": "any",
        "training_file": "any.jsonl",
        "loss": "sft",
        "r": 3,
        "max_seq_length": 10,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
    }
    return TrainingConfig(**(usual | options))


def test_numbers_of_the_model_and_of_an_adapter() -> None:
    assert PARAMETERS == 1992
    assert SMALL.parameters == PARAMETERS
    assert SMALL.adapter(3, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]) == ADAPTER
    assert SMALL.adapter(3, ["q_proj"]) == 2 * 3 * 16


@pytest.mark.parametrize(("name", "billions"), [("Qwen2.5-7B", 7.62), ("Qwen2.5-32B", 32.76), ("Llama-3.1-70B", 70.55)])
def test_sizes_of_public_models(name: str, billions: float) -> None:
    """What their cards say."""
    assert MODELS[name].parameters / 1e9 == pytest.approx(billions, rel=0.002)


def test_full_training_on_one_gpu() -> None:
    """float32 weights with a half copy, gradients, two moments, a copy of all for Adam's step."""
    memory = memory_of(config(is_peft=False), SMALL)
    assert memory.weights == PARAMETERS * 6
    assert (memory.optimizer, memory.gradients, memory.step) == (PARAMETERS * 8, PARAMETERS * 4, PARAMETERS * 4)
    # A token of a layer: two norms of 8 · (4 + 2 + 4), q, k, v and output of 24 halves, gate and up of 32 halves.
    assert memory.one_layer == 20 * (160 + 48 + 64)
    # And four times a float32 state of width 8 at the end.
    assert memory.activations == 20 * (2 * 272 + 4 * 32)
    assert memory.head == 20 * 100 * 3 * 4 + 100 * 8 * 4
    stays, before_backward = memory.weights + memory.optimizer, memory.activations + memory.head
    assert memory.peak == stays + max(before_backward, PARAMETERS * 4 + memory.one_layer, PARAMETERS * 8)


def test_accumulated_gradients_are_there_during_the_next_loss() -> None:
    one, several = (memory_of(config(is_peft=False, gradient_accumulation_steps=steps), SMALL) for steps in (1, 2))
    assert several.peak - one.peak == PARAMETERS * 4  # the loss is the largest phase of both


def test_an_adapter_on_half_or_quarter_weights() -> None:
    plain, quantised = (memory_of(config(load_in_4bit=four), SMALL) for four in (False, True))
    assert plain.weights == PARAMETERS * 2 + ADAPTER * 4
    assert quantised.weights == pytest.approx(plain.weights - 2 * IN_A_LAYER * (2 - 4.127 / 8))
    assert (plain.optimizer, plain.gradients) == (ADAPTER * 8, ADAPTER * 4)
    assert plain.one_layer == 20 * (2 * 8 * 6 + 48 + 64 + 3 * 7 * 2)


def test_checkpointing_keeps_the_input_of_each_layer_and_one_layer() -> None:
    memory = memory_of(config(is_peft=False, gradient_checkpointing=True), SMALL)
    assert memory.activations == memory.one_layer + 20 * (2 + 4) * 8 * 4


def test_what_is_shared_among_gpus() -> None:
    full = config(is_peft=False)
    copied, second, sharded = (memory_of(full, SMALL, Placement(4, how)) for how in ("none", "zero2", "fsdp"))
    assert (copied.gradients, second.gradients, sharded.gradients) == tuple(PARAMETERS * size for size in (8, 1, 1))
    assert (copied.optimizer, second.optimizer, sharded.optimizer) == tuple(PARAMETERS * size for size in (8, 2, 2))
    assert (copied.weights, second.weights, sharded.weights) == tuple(PARAMETERS * size for size in (6, 2 + 4 / 4, 1))
    assert (copied.loading, second.loading) == (0, PARAMETERS * 4)  # as DeepSpeed is given them, in float32
    assert replace(second, loading=1e9).peak == 1e9
    # Two layers and the embeddings, whole: a half each and their float32 gradients.
    assert sharded.activations - copied.activations == (2 * IN_A_LAYER + 800) * 6


def test_teachers_and_references() -> None:
    adapter = config(loss="sdft", sdft_max_new_tokens=5)
    assert memory_of(adapter, SMALL).teacher == ADAPTER * 4 + 2 * 5 * 8 * 4
    assert memory_of(config(loss="sdft", sdft_max_new_tokens=5, sdft_teacher="live"), SMALL).teacher == 2 * 5 * 8 * 4
    full = config(loss="sdft", sdft_max_new_tokens=5, is_peft=False, gradient_accumulation_steps=3)
    assert memory_of(full, SMALL).teacher == PARAMETERS * 4 + 3 * (2 * 5 * 8 * 4 + 100 * 8 * 4)
    assert memory_of(config(loss="dpo"), SMALL).teacher == 0  # the base, with the adapter off
    assert memory_of(config(loss="dpo", is_peft=False), SMALL).teacher == PARAMETERS * 4


def test_rollouts_have_a_cache_of_keys_and_values() -> None:
    """Two layers, keys and values of one head of 4, 10 tokens, 2 rows in each of 3 micro-batches; 32 rows at most."""
    row = 2 * 2 * 4 * 2 * 10
    assert memory_of(config(loss="sdft", gradient_accumulation_steps=3), SMALL).rollouts == 6 * row
    assert memory_of(config(loss="sdft", gradient_accumulation_steps=99), SMALL).rollouts == 32 * row
    assert memory_of(config(), SMALL).rollouts == 0


def test_pairs_are_two_sequences_and_orpo_forms_all_logits() -> None:
    memory = memory_of(config(loss="orpo"), SMALL)
    assert memory.one_layer == 2 * memory_of(config(), SMALL).one_layer
    assert memory.head == 40 * 100 * 12


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="'intermediate_size'; its memory can be estimated for Llama-like models only"
    ):
        ModelShape.of({"num_attention_heads": 2, "hidden_size": 8, "vocab_size": 9, "num_hidden_layers": 1})


def test_the_page_has_the_table_of_the_calculator() -> None:
    assert table() in (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8"), "python -m benchmarks.memory makes it"
