"""Mean hidden states against one forward pass a prompt, cosines by hand."""

import json
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.config.training import Direction
from tutelage.data.chat_template import ChatTemplate
from tutelage.errors import ConfigError, DataError
from tutelage.monitoring.directions import HiddenDirection, mean_hidden

TOKENIZER = tiny_tokenizer()
TEMPLATE = ChatTemplate(TOKENIZER)
MODEL = tiny_model(TOKENIZER)
PROMPTS = [[5, 6, 7, 8, 9], [30], [40, 41, 42]]


def prompt_file(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


def test_cosine_by_hand():
    """d = (0.6, 0.8): with (3, 4) it is 1, with (4, −3) 0, with (1, 0) 0.6; length does not matter."""
    direction = HiddenDirection("d", torch.tensor([0.6, 0.8]).double(), layer=-1, position="last")
    vectors = ([3.0, 4.0], [4.0, -3.0], [1.0, 0.0], [-0.1, 0.0], [0.0, 0.0])
    cosines = [direction.cosine(torch.tensor(vector).double()) for vector in vectors]
    assert cosines == pytest.approx([1.0, 0.0, 0.6, -0.6, 0.0], abs=1e-7)


def test_the_embedding_layer_is_the_mean_of_embeddings():
    embedding = MODEL.get_input_embeddings().weight.detach().double()
    expected = {
        "last": (embedding[9] + embedding[30] + embedding[42]) / 3,
        "mean": (embedding[5:10].mean(0) + embedding[30] + embedding[40:43].mean(0)) / 3,
    }
    for position, mean_D in expected.items():
        torch.testing.assert_close(mean_hidden(MODEL, PROMPTS, layer=0, position=position), mean_D)


@pytest.mark.parametrize("layer", [1, -1])
@pytest.mark.parametrize("position", ["last", "mean"])
def test_padding_and_batches_change_nothing(layer: int, position: str):
    with torch.no_grad():
        alone = [MODEL(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0] for ids in PROMPTS]
    rows = [h_TD[-1] if position == "last" else h_TD.mean(0) for h_TD in alone]
    expected_D = torch.stack(rows).double().mean(0)
    for batch_size in (1, 2, 16):
        mean_D = mean_hidden(MODEL, PROMPTS, layer, position, batch_size)
        torch.testing.assert_close(mean_D, expected_D, rtol=1e-5, atol=1e-6)


def test_a_direction_points_from_b_to_a(tmp_path: Path):
    a = prompt_file(tmp_path / "a.jsonl", "Good evening, Madam.", "I remain yours faithfully.")
    b = prompt_file(tmp_path / "b.jsonl", "hey", "what's up?", "nah")
    direction = HiddenDirection.prepare("formal", Direction(a=a, b=b, layer=1), MODEL, TEMPLATE)
    means = []
    for path in (a, b):
        texts = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
        ids = [
            TOKENIZER.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)["input_ids"]
            for text in texts
        ]
        means.append(mean_hidden(MODEL, ids, layer=1))
    difference_D = means[0] - means[1]
    assert float(direction.unit.norm()) == pytest.approx(1.0)
    assert float(difference_D @ direction.unit) == pytest.approx(float(difference_D.norm()))
    values = direction.measure(MODEL, PROMPTS)
    mean_D = mean_hidden(MODEL, PROMPTS, layer=1)
    assert values == {
        "cos_sim/formal": pytest.approx(float(mean_D @ difference_D / mean_D.norm() / difference_D.norm()))
    }


def test_what_cannot_be_a_direction(tmp_path: Path):
    a = prompt_file(tmp_path / "a.jsonl", "hello")
    b = prompt_file(tmp_path / "b.jsonl", "goodbye")
    with pytest.raises(ConfigError, match=r"monitoring_directions\.x\.layer: 3 does not exist; .* layers 0 to 2"):
        HiddenDirection.prepare("x", Direction(a=a, b=b, layer=3), MODEL, TEMPLATE)
    with pytest.raises(DataError, match=r"monitoring_directions\.x: the prompts of .* same mean hidden state"):
        HiddenDirection.prepare("x", Direction(a=a, b=a), MODEL, TEMPLATE)
