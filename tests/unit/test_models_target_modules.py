"""Names of layers that an adapter is to have: all of one's own list, and one at least of the default."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from tests.small_runs import save_tiny_model, small_config
from tutelage.errors import ModelError
from tutelage.models.loading import without_peft_deprecations
from tutelage.models.target_modules import check_target_modules, require_target_modules


def test_names_are_looked_for_without_weights(tmp_path: Path) -> None:
    base = str(save_tiny_model(tmp_path / "tiny"))
    (tmp_path / "tiny" / "model.safetensors").unlink()
    check_target_modules(small_config(tmp_path, "run"), base)
    check_target_modules(small_config(tmp_path, "run", target_modules=["layers.0.mlp.up_proj"]), base)
    with pytest.raises(ModelError) as caught:
        check_target_modules(small_config(tmp_path, "run", target_modules=["v_proj", "up_poj", "proj"]), base)
    assert str(caught.value) == (
        "target_modules: 'up_poj', 'proj' are not in LlamaForCausalLM; did you mean 'up_proj'?; its linear layers are "
        "called down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    )
    check_target_modules(small_config(tmp_path, "run"), str(tmp_path / "nowhere"))  # loading says what is wrong


# PEFT sets rank and alpha of the fused parameter, and then says that no module has its name.
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
def test_names_of_experts_are_left_to_peft(tmp_path: Path) -> None:
    """It turns those of Mixtral's files into the parameters that hold all experts."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
    with torch.device("meta"):
        mixtral = MixtralForCausalLM(MixtralConfig(num_hidden_layers=1, vocab_size=8, num_local_experts=2, **sizes))
    config = small_config(tmp_path, "run", target_modules=["w1", "w2", "w3"])
    assert not any(name.endswith(("w1", "w2", "w3")) for name, _ in mixtral.named_modules())
    require_target_modules(mixtral, config)
    with without_peft_deprecations():
        adapted = get_peft_model(mixtral, LoraConfig(r=2, target_modules=list(config.target_modules)))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".experts." in name for name in trained)


def test_of_the_default_one_name_is_enough(tmp_path: Path) -> None:
    """GPT-2 has none of them."""
    config = small_config(tmp_path, "run")
    with torch.device("meta"):
        gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8))
    with pytest.raises(
        ModelError, match=r"'q_proj', .* are not in GPT2LMHeadModel; .* called c_attn, c_fc, c_proj, lm_head"
    ):
        require_target_modules(gpt2, config)
    gpt2.transformer.h[0].o_proj = torch.nn.Linear(8, 8, device="meta")
    require_target_modules(gpt2, config)
