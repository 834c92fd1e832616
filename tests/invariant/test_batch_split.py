"""How a step is cut into micro-batches, padded, ordered or packed must not change its gradient.

Runs use plain SGD, so equal weights after two steps mean equal gradients. Differences that remain are float32
sums in another order: below a ten-thousandth of what one step moves.
"""

from pathlib import Path

import pytest
import torch

from tests.small_runs import ROWS, largest_difference, run_small, trained_weights, write_rows
from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.data.collators import packed_batch, pad_batch
from tutelage.data.rows import TokenRow
from tutelage.models import layout
from tutelage.training.token_loss import _laid_out, token_loss_sum

SAME = 1e-4

Weights = dict[str, torch.Tensor]


def assert_same_steps(one: Weights, other: Weights, one_step_less: Weights) -> None:
    moved = largest_difference(one, one_step_less)
    assert moved > 1e-5
    assert largest_difference(one, other) < SAME * moved


@pytest.mark.parametrize("is_peft", [True, False])
@pytest.mark.parametrize("loss", ["sft", "dft", "sdft"])
def test_batch_times_accumulation_is_all_that_counts(tmp_path: Path, loss: str, is_peft: bool) -> None:
    weights = {
        (batch, accumulation): trained_weights(
            run_small(
                tmp_path,
                f"{batch}x{accumulation}",
                loss=loss,
                is_peft=is_peft,
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulation,
            )
        )
        for batch, accumulation in ((8, 1), (4, 2), (1, 8))
    }
    one_step_less = trained_weights(run_small(tmp_path, "one-step", loss=loss, is_peft=is_peft, max_steps=1))
    assert_same_steps(weights[8, 1], weights[4, 2], one_step_less)
    assert_same_steps(weights[8, 1], weights[1, 8], one_step_less)


@pytest.mark.parametrize("normalization", ["token", "sequence"])
def test_sdft_normalisations_do_not_see_the_split(tmp_path: Path, normalization: str) -> None:
    whole, split, one_step_less = (
        trained_weights(
            run_small(
                tmp_path,
                f"{batch}-{steps}",
                max_steps=steps,
                loss="sdft",
                sdft_normalization=normalization,
                sdft_skip_tokens=1,
                sdft_off_policy_fraction=0.5,
                sdft_num_generations=2,
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=8 // batch,
            )
        )
        for batch, steps in ((8, 2), (2, 2), (8, 1))
    )
    assert_same_steps(whole, split, one_step_less)


@pytest.mark.parametrize("loss", ["sft", "dft", "sdft"])
def test_order_of_rows_within_a_step(tmp_path: Path, loss: str) -> None:
    """All eight rows are one step. sdft learns from the gold answers here: a rollout belongs to a row's place in
    the file, so the reversed file has other rollouts."""
    reverse = write_rows(tmp_path / "reversed.jsonl", ROWS[::-1])
    options = {"loss": loss, "is_peft": False, "sdft_off_policy_fraction": 1.0}
    one = trained_weights(run_small(tmp_path, "one", **options))
    other = trained_weights(run_small(tmp_path, "other", **options, training_file=reverse))
    one_step_less = trained_weights(run_small(tmp_path, "one-step", **options, max_steps=1))
    assert_same_steps(one, other, one_step_less)


@pytest.mark.parametrize("loss", ["sft", "dft"])
def test_packing_on_and_off(tmp_path: Path, loss: str) -> None:
    """All eight rows are one pack, and one batch of eight: the same step."""
    options = {"loss": loss, "is_peft": False}
    pack = {"packing": True, "per_device_train_batch_size": 1, "max_seq_length": 512}
    padded = trained_weights(run_small(tmp_path, "padded", **options))
    packed = trained_weights(run_small(tmp_path, "packed", **options, **pack))
    one_step_less = trained_weights(run_small(tmp_path, "one-step", **options, max_steps=1))
    assert_same_steps(padded, packed, one_step_less)


def _rows() -> list[TokenRow]:
    generator = torch.Generator().manual_seed(1)
    lengths = (5, 17, 9)
    beginning = [*range(7, 15)]  # eight tokens are shared, and among them are trained ones
    ids = [beginning + torch.randint(3, 300, (length,), generator=generator).tolist() for length in lengths]
    return [
        TokenRow(row, [-100, -100, *row[2:]], weight, index, f"r:{index}")
        for index, (row, weight) in enumerate(zip(ids, (1.0, 1.0, 2.5), strict=True))
    ]


@pytest.mark.parametrize("objective", ["nll", "dft"])
@pytest.mark.parametrize("trees", [True, False])
def test_padding_side_pad_token_and_packing_give_the_same_loss(
    objective: str, trees: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not trees:
        monkeypatch.setattr(layout, "takes_trees", lambda model: False)
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer).double()
    pad = tokenizer.pad_token_id
    rows = _rows()
    batches = [
        pad_batch(rows, pad, "right"),
        pad_batch(rows, pad, "left"),
        pad_batch(rows, 17, "right"),
        packed_batch([rows]),
        packed_batch([rows[2:], rows[:2]]),
    ]
    losses = [float(token_loss_sum(model, batch, objective)[0].detach()) for batch in batches]
    alone = sum(float(token_loss_sum(model, pad_batch([row], pad), objective)[0].detach()) for row in rows)
    assert losses == pytest.approx([alone] * len(losses), rel=1e-6)
    is_tree = ["position_ids" in _laid_out(model, batch)[0].inputs for batch in batches[:3]]
    assert is_tree == [trees] * 3
    assert (_laid_out(model, batches[3])[0].inputs["input_ids"].shape[1] == 8 + 31) == trees


def test_a_packed_row_does_not_see_its_neighbour() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer).double()
    first, second, _ = _rows()
    changed = TokenRow([3, *second.input_ids[1:]], second.labels, 1.0, 1, "changed")
    _, stats = token_loss_sum(model, packed_batch([[second, first]]), "nll")
    _, other = token_loss_sum(model, packed_batch([[changed, first]]), "nll")
    tokens = second.num_trained
    assert not torch.allclose(stats.nll[:tokens], other.nll[:tokens], atol=1e-3)
    torch.testing.assert_close(stats.nll[tokens:], other.nll[tokens:], atol=1e-9, rtol=0)
