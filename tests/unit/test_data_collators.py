"""Batches: exact tensors, and the same per-token losses however rows are padded or packed."""

import torch
from torch import Tensor
from torch.testing import assert_close

from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.collators import packed_batch, pad_batch
from tutelage.data.conversations import Conversation, Message
from tutelage.data.prepare import prepare_token_rows
from tutelage.data.rows import TokenRow

SHORT = TokenRow([1, 2], [-100, 2], 0.5, 4, "x:5")
LONG = TokenRow([7, 2, 9], [7, 2, -100], 2.0, 8, "x:9")
PAD = 2  # equal to a token of the rows, as pad == eos is common


def as_lists(batch: dict[str, Tensor]) -> dict[str, list[object]]:
    return {name: tensor.tolist() for name, tensor in batch.items()}


def test_padding_on_the_right() -> None:
    assert as_lists(pad_batch([SHORT, LONG], PAD)) == {
        "input_ids": [[1, 2, 2], [7, 2, 9]],
        "attention_mask": [[1, 1, 0], [1, 1, 1]],
        "labels": [[-100, 2, -100], [7, 2, -100]],
        "weights": [[0.5, 0.5, 0.0], [2.0, 2.0, 2.0]],
        "rows": [4, 8],
    }


def test_padding_on_the_left() -> None:
    assert as_lists(pad_batch([SHORT, LONG], PAD, "left")) == {
        "input_ids": [[2, 1, 2], [7, 2, 9]],
        "attention_mask": [[0, 1, 1], [1, 1, 1]],
        "labels": [[-100, -100, 2], [7, 2, -100]],
        "weights": [[0.0, 0.5, 0.5], [2.0, 2.0, 2.0]],
        "rows": [4, 8],
    }


def test_packs_restart_positions_and_predict_nothing_across_rows() -> None:
    """LONG trains its first token on its own account; in a pack the row before would predict it."""
    assert as_lists(packed_batch([[SHORT, LONG], [SHORT]])) == {
        "input_ids": [[1, 2, 7, 2, 9, 1, 2]],
        "position_ids": [[0, 1, 0, 1, 2, 0, 1]],
        "labels": [[-100, 2, -100, 2, -100, -100, 2]],
        "weights": [[0.5, 0.5, 2.0, 2.0, 2.0, 0.5, 0.5]],
        "rows": [4, 8, 4],
    }


def test_losses_are_the_same_padded_left_right_and_packed() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    turns = [("What is the capital of France?", "Paris."), ("2+2", "four"), ("a", "The answer is b, not c.")]
    conversations = [
        Conversation((Message("user", question), Message("assistant", answer)), None, 1.0, f"x:{line}")
        for line, (question, answer) in enumerate(turns)
    ]
    rows = list(prepare_token_rows(conversations, ChatTemplate(tokenizer), max_seq_length=200))

    def token_losses(batch: dict[str, Tensor]) -> Tensor:
        """NLL of the trained tokens, row after row."""
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids") if key in batch}
        with torch.no_grad():
            logits_BTV = model(**inputs, use_cache=False).logits
        targets_BT = batch["labels"][:, 1:]
        nll_BT = torch.nn.functional.cross_entropy(
            logits_BTV[:, :-1].transpose(1, 2), targets_BT, ignore_index=-100, reduction="none"
        )
        return nll_BT[targets_BT != -100]

    alone = torch.cat([token_losses(pad_batch([row], PAD)) for row in rows])
    assert len(alone) == sum(row.num_trained for row in rows)
    assert alone.std() > 0.1  # far from uniform, so that a wrong mask would show
    for batch in (
        pad_batch(rows, PAD),
        pad_batch(rows, PAD, "left"),
        pad_batch(rows, 5),
        packed_batch([rows]),
        packed_batch([rows[:2], rows[2:]]),
    ):
        assert_close(token_losses(batch), alone, atol=2e-5, rtol=1e-4)
    one_text = packed_batch([rows]) | {"position_ids": torch.arange(sum(len(row.input_ids) for row in rows))[None]}
    assert not torch.allclose(token_losses(one_text), alone, atol=1e-3)  # without restarts rows see each other
