"""A causal model whose next-token distribution is known by construction, for numbers worked out by hand."""

import math
from collections.abc import Mapping

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

IMPOSSIBLE = -40.0


def known_model(
    tokenizer: PreTrainedTokenizerBase, next_probabilities: Mapping[int, Mapping[int, float]]
) -> LlamaForCausalLM:
    """A Llama for which p(next | all before) = next_probabilities[last token][next].

    Probabilities of one token add up to 1; what is not named has probability exp(-40), and tokens that are not
    named are followed by anything alike. The embedding is the identity, attention and MLP add 0, the last norm
    scales the one-hot vector by √V, and the head holds log p / √V.
    """
    size = len(tokenizer)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=size,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=1,
            max_position_embeddings=256,
            rms_norm_eps=1e-12,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
    set_next_probabilities(model, next_probabilities)
    return model.eval()


@torch.no_grad()
def set_next_probabilities(model: LlamaForCausalLM, next_probabilities: Mapping[int, Mapping[int, float]]) -> None:
    """Give the model other probabilities, in place."""
    size = model.config.vocab_size
    log_p_VV = torch.zeros(size, size)  # rows: next token, columns: last token
    for last, probabilities in next_probabilities.items():
        assert math.isclose(sum(probabilities.values()), 1.0)
        log_p_VV[:, last] = IMPOSSIBLE
        for token, probability in probabilities.items():
            log_p_VV[token, last] = math.log(probability)
    model.lm_head.weight.copy_(log_p_VV / math.sqrt(size))
