"""The Axolotl plugin without torch, transformers and axolotl: `python tests/test_dft_plugin.py`, or through pytest.

A dummy trainer takes batches the way `transformers` does. What computes (`loss`, `metrics`) is stood in for; the real
parts are tested in `tests/unit/test_axolotl_plugin.py` and, inside a real Axolotl, in `tests/real_axolotl`.
"""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

SOURCE = Path(__file__).resolve().parents[1] / "src"
LISTED = {"plugins": ["axolotl_dft_plugin.DFTPlugin"]}


class DummyModel:
    """Returns a loss of its own where it sees labels; the logits are a name only."""

    training = True
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(to_dict=dict))

    def __call__(self, **inputs: Any) -> Any:
        loss = "the model's own loss of labels" if "labels" in inputs else "the model's own loss"
        return SimpleNamespace(loss=loss, logits=f"logits of {inputs['input_ids']}")


class DummyTrainer:
    """`compute_loss` does what that of `transformers.Trainer` does with a `compute_loss_func`."""

    def __init__(self) -> None:
        self.model = DummyModel()
        self.args = SimpleNamespace(average_tokens_across_devices=False, n_gpu=0)
        self.callback_handler = SimpleNamespace(callbacks=["a logger"])
        self.compute_loss_func: Any = None
        self.model_accepts_loss_kwargs = True

    def compute_loss(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        labels = inputs.pop("labels", None) if self.compute_loss_func else None
        outputs = model(**inputs)
        if self.compute_loss_func is None:
            return outputs.loss
        return self.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)

    def prediction_step(self, *args: Any) -> None: ...

    def evaluate(self) -> None: ...


def stand_ins() -> Any:
    """Modules in place of those that need torch: the loss is a sentence about what it was given."""
    loss = SimpleNamespace(
        dense_sums=lambda logits, labels: {"dft_loss": f"dft of {logits} and {labels}", "tokens": "own tokens"},
        per_token=lambda total, tokens: f"{total} over {tokens}",
        added=lambda sums, more: {**sums, **more},
    )
    metrics = SimpleNamespace(LogTokenMeans=lambda training: "the token means")
    names = {"axolotl_dft_plugin.loss": loss, "axolotl_dft_plugin.metrics": metrics, "tutelage.models.head": None}
    package = sys.modules["axolotl_dft_plugin"]
    for name in ("loss", "metrics"):
        vars(package).pop(name, None)
    return patch.dict(sys.modules, names)


def plugin() -> Any:
    sys.path.insert(0, str(SOURCE))
    try:
        import axolotl_dft_plugin
    finally:
        sys.path.remove(str(SOURCE))
    return axolotl_dft_plugin.DFTPlugin()


def trainer_after(cfg: dict[str, Any], *hooks: str) -> DummyTrainer:
    trainer = DummyTrainer()
    hook_owner = plugin()
    with stand_ins():
        for hook in hooks:
            getattr(hook_owner, hook)(cfg, trainer)
    return trainer


def loss_of(trainer: DummyTrainer, **inputs: Any) -> Any:
    with stand_ins():
        return trainer.compute_loss(trainer.model, {"input_ids": "ids", **inputs}, num_items_in_batch=7)


def exit_of(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call exits with: a sentence becomes exit code 1, and 0 would be a success."""
    try:
        call(*arguments)
    except SystemExit as exit_error:
        return exit_error.code
    return "not refused"


def refusal(cfg: dict[str, Any]) -> str:
    return str(exit_of(plugin().register, {**LISTED, **cfg}))


def test_importing_loads_neither_torch_nor_axolotl() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r}); import axolotl_dft_plugin; import axolotl_dft_plugin.plugin;"
        "print([name for name in ('torch', 'transformers', 'axolotl', 'pydantic', 'tutelage') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_a_batch_with_labels_takes_the_dft_loss() -> None:
    for hook in ("post_trainer_create", "on_trainer_create"):
        trainer = trainer_after(LISTED, hook)
        assert loss_of(trainer, labels="labels") == "dft of logits of ids and labels over 7", hook


def test_a_batch_without_labels_takes_the_original_path() -> None:
    trainer = trainer_after(LISTED, "post_trainer_create")
    assert loss_of(trainer) == "the model's own loss"
    assert loss_of(trainer, labels="labels").startswith("dft of"), "the loss function is back afterwards"


def test_without_an_item_count_its_own_tokens_divide() -> None:
    trainer = trainer_after(LISTED, "post_trainer_create")
    with stand_ins():
        loss = trainer.compute_loss(trainer.model, {"input_ids": "ids", "labels": "labels"})
    assert loss == "dft of logits of ids and labels over own tokens"


def test_both_names_of_the_hook_install_it_once() -> None:
    trainer = trainer_after(LISTED, "post_trainer_create", "on_trainer_create")
    assert trainer.callback_handler.callbacks == ["the token means", "a logger"]
    assert trainer.args.average_tokens_across_devices is True


def test_left_alone_when_disabled_not_listed_or_reinforcement_learning() -> None:
    left_alone: list[dict[str, Any]] = [
        {**LISTED, "dft": {"enabled": False}},
        {"plugins": ["some.OtherPlugin"]},
        {**LISTED, "rl": "dpo"},
        {**LISTED, "reward_model": True},
    ]
    for cfg in left_alone:
        trainer = trainer_after(cfg, "post_trainer_create")
        assert loss_of(trainer, labels="labels") == "the model's own loss of labels", cfg
        assert trainer.callback_handler.callbacks == ["a logger"], cfg
        assert trainer.args.average_tokens_across_devices is False, cfg


def test_a_class_derived_from_it_goes_by_its_own_name() -> None:
    """`plugins: [my_package.MyDFT]`; and a plugin that only an earlier config of this process listed does nothing."""
    derived = type("MyDFT", (type(plugin()),), {})()
    trainer, other = DummyTrainer(), DummyTrainer()
    with stand_ins():
        derived.post_trainer_create({"plugins": ["my_package.MyDFT"]}, trainer)
        derived.post_trainer_create(LISTED, other)
    assert loss_of(trainer, labels="labels").startswith("dft of")
    assert loss_of(other, labels="labels") == "the model's own loss of labels"


def test_what_cannot_go_with_it_is_refused_in_a_sentence() -> None:
    assert "'use_eaft: true' does not go with dft: EAFT" in refusal({"use_eaft": True})
    assert "'liger_use_token_scaling: true'" in refusal({"liger_use_token_scaling": True})
    assert "'label_smoothing_factor: 0.1'" in refusal({"label_smoothing_factor": 0.1})
    assert "'orpo_alpha: 0.1'" in refusal({"orpo_alpha": 0.1})
    assert "'use_dft: true'" in refusal({"use_dft": True})
    assert "'context_parallel_size: 2'" in refusal({"context_parallel_size": 2})
    assert "did you mean 'enabled'?" in refusal({"dft": {"enable": True}})
    assert "it knows enabled" in refusal({"dft": {"temperature": 1}})
    assert "neither true nor false" in refusal({"dft": {"enabled": "maybe"}})
    assert "is not a block of options" in refusal({"dft": True})


def test_what_can_go_with_it_is_not_refused() -> None:
    fine: list[dict[str, Any]] = [
        {},
        {"dft": None},
        {"dft": {"enabled": True}, "context_parallel_size": 1, "use_eaft": False},
        {"dft": {"enabled": False}, "use_eaft": True},
        {"rl": "dpo", "label_smoothing": 0.1},
    ]
    for cfg in fine:
        assert refusal(cfg) == "not refused", cfg


def test_another_loss_function_is_refused() -> None:
    trainer = DummyTrainer()

    def eaft_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any: ...

    trainer.compute_loss_func = eaft_loss
    sentence = str(exit_of(plugin().post_trainer_create, LISTED, trainer))
    assert "another compute_loss_func already" in sentence
    assert "eaft_loss" in sentence
    assert trainer.compute_loss_func is eaft_loss


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    tests = {name: test for name, test in dict(globals()).items() if name.startswith("test_")}
    for name, test in tests.items():
        test()
        print(f"{name}: passed")
    print(f"{len(tests)} passed, 0 failed")
