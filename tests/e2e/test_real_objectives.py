"""SmolLM2 with the configs of the examples, cut short: the reward of grpo rises, and the margins of dpo and orpo."""

from pathlib import Path

import pytest
from rich.console import Console

from tutelage import Run, train
from tutelage.config import load_config
from tutelage.events import Tag

EXAMPLES = Path(__file__).parents[2] / "examples"
UNWATCHED = {"monitoring_eval_steps": None}


def trained(config: Path, folder: Path, **options: object) -> Run:
    loaded = load_config(config).model_copy(update={"output_dir": folder / "run", **UNWATCHED, **options})
    return train(loaded, console=Console(quiet=True))


def test_the_mean_reward_rises_within_a_few_steps(tmp_path: Path) -> None:
    """A larger learning rate than the example's, and fewer steps."""
    run = trained(EXAMPLES / "traits_grpo" / "grpo.yaml", tmp_path, max_steps=6, learning_rate=1e-3)
    rewards = [event.values["reward"] for event in run.events(Tag.TRAIN)]
    assert run.events(Tag.CHECK)[0].values["gold_reward"] == pytest.approx(2.0, abs=0.01)
    assert max(rewards[:2]) < 0.3
    assert sum(rewards[-2:]) / 2 > 0.4, rewards


@pytest.mark.parametrize("loss", ["dpo", "orpo"])
def test_the_margin_of_better_answers_rises(tmp_path: Path, loss: str) -> None:
    """The same two pairs in every step, so that nothing else changes from one to the next."""
    example = EXAMPLES / "preferences"
    pairs = (example / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:2]
    few = tmp_path / "few.jsonl"
    few.write_text("".join(pairs), encoding="utf-8")
    run = trained(example / f"{loss}.yaml", tmp_path, training_file=few, per_device_train_batch_size=2, max_steps=5)
    margins = [event.values["rewards/margins"] for event in run.events(Tag.TRAIN)]
    assert margins[-1] > margins[2] > margins[0], margins
    assert margins[-1] - margins[0] > 0.2, margins
