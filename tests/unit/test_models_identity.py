"""Which model a folder holds: the hash that outcomes are kept under, and models loaded to be asked only."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.small_runs import save_tiny_model
from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.errors import ModelError
from tutelage.models import load_frozen, model_identity
from tutelage.models.loading import without_peft_deprecations


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "tiny")


def change_one_weight(path: Path) -> None:
    """By the smallest step: the header and the size stay."""
    weights = load_file(path)
    first = weights[min(weights)]
    first.view(-1)[0] = torch.nextafter(first.view(-1)[0], torch.tensor(9.0))
    save_file(weights, path, metadata={"format": "pt"})


def save_adapter(base: Path, folder: Path) -> Path:
    """An adapter that changes something."""
    with without_peft_deprecations():
        model = get_peft_model(tiny_model(tiny_tokenizer()), LoraConfig(r=2, target_modules=["q_proj"]))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_copy_is_the_same_model_and_notes_beside_it_are_none_of_it(tiny: Path, tmp_path: Path):
    copy = shutil.copytree(tiny, tmp_path / "copy", copy_function=shutil.copyfile)
    (copy / "README.md").write_text("notes")
    assert model_identity(str(copy)) == model_identity(str(tiny))


def test_one_weight_or_the_template_makes_another_model(tiny: Path):
    first = model_identity(str(tiny))
    size = (tiny / "model.safetensors").stat().st_size
    change_one_weight(tiny / "model.safetensors")
    assert (tiny / "model.safetensors").stat().st_size == size
    second = model_identity(str(tiny))
    next(tiny.glob("*.jinja")).write_text("another")
    assert len({first, second, model_identity(str(tiny))}) == 3


def test_an_adapter_is_another_model_on_another_base(tiny: Path, tmp_path: Path):
    adapter = save_adapter(tiny, tmp_path / "adapter")
    first = model_identity(str(adapter))
    assert first != model_identity(str(tiny))
    assert model_identity(str(adapter)) == first
    change_one_weight(tiny / "model.safetensors")
    assert model_identity(str(adapter)) != first


def test_a_frozen_model_is_the_base_with_the_adapter_merged(tiny: Path, tmp_path: Path):
    """q_proj is W + (alpha / r) · B A, alpha being 8 and r 2."""
    adapter = save_adapter(tiny, tmp_path / "adapter")
    loaded = load_frozen(str(adapter))
    written = load_file(adapter / "adapter_model.safetensors")
    (a,) = (value for name, value in written.items() if "layers.0." in name and "lora_A" in name)
    (b,) = (value for name, value in written.items() if "layers.0." in name and "lora_B" in name)
    before = load_file(tiny / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    merged = loaded.model.model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(merged.detach(), before + 4 * (b @ a))
    assert loaded.source == str(tiny)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_models_that_are_not_there(tmp_path: Path):
    with pytest.raises(ModelError, match="no such model folder"):
        model_identity("./none")
    with pytest.raises(ModelError, match="model 'nobody/nothing': not on the Hub or in its cache"):
        model_identity("nobody/nothing")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no base model"):
        model_identity(str(tmp_path / "adapter"))
