"""Sampling from a real model of 135M parameters, held to `transformers`."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage.models import resolve_model
from tutelage.rollouts import generate
from tutelage.rollouts.supported_models import read_decoder

QUESTIONS = ["What is the capital of France?", "Name three rivers.", "Why is the sky blue? Answer in one sentence."]
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("adapted", [False, True])
def test_greedy_answers_are_those_of_transformers(adapted: bool) -> None:
    """Prompts of three lengths that begin alike, twenty tokens each; the adapter moves the answers."""
    source = resolve_model("smollm2")
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    if adapted:
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=LAYERS)).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.005)
    with torch.no_grad():
        assert read_decoder(model) is not None
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)["input_ids"]
        for question in QUESTIONS
    ]
    expected: list[list[int]] = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        given = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        expected.append(given[0, len(prompt) :].tolist())
    found = generate(
        model,
        prompts,
        pad_token_id=tokenizer.eos_token_id,
        stop_ids=[tokenizer.eos_token_id],
        max_new_tokens=20,
        temperature=0.0,
    )
    assert found == expected
    if not adapted:
        assert "Paris" in tokenizer.decode(found[0])
