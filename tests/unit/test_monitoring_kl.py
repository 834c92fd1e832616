"""KL to the base model: numbers of a known model, and the adapter switched off as the base."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.known_model import known_model, set_next_probabilities
from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.data.chat_template import ChatTemplate
from tutelage.errors import DataError
from tutelage.models import WeightCopy
from tutelage.monitoring import KlToBase, everyday_prompts
from tutelage.rollouts import generate

# PEFT 0.21 asks for an attribute that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

TOKENIZER = tiny_tokenizer()
TEMPLATE = ChatTemplate(TOKENIZER)
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
LINE_BREAK = TEMPLATE.encode_prompt(everyday_prompts()[0].messages)[-1]
A, B = (TOKENIZER(letter, add_special_tokens=False)["input_ids"][0] for letter in "ab")


def fresh_lora(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(
            tiny_model(TOKENIZER), LoraConfig(r=4, lora_alpha=8, lora_dropout=0.5, target_modules=["q_proj", "up_proj"])
        )


def train_adapter(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("max_new_tokens", [1, 2])
def test_known_distributions(max_new_tokens: int):
    """Base: p(a) = ¼, p(b) = ¾ after the prompt; model: ½, ½. Both end the answer for sure after its first token.

    One token: KL(model ‖ base) = ½ ln 2 + ½ ln ⅔ = 0.143841, KL(base ‖ model) = ¼ ln ½ + ¾ ln 3/2 = 0.130812. The
    second position (end of turn, equal) adds 0 and halves the mean over tokens.
    """
    ends = {A: {END: 1.0}, B: {END: 1.0}}
    model = known_model(TOKENIZER, {LINE_BREAK: {A: 0.25, B: 0.75}} | ends)
    kl = KlToBase.prepare(model, WeightCopy.of(model), everyday_prompts()[:3], TEMPLATE, max_new_tokens)
    assert all(answer == [B, END][:max_new_tokens] for _, answer in kl.base_pairs)
    set_next_probabilities(model, {LINE_BREAK: {A: 0.5, B: 0.5}} | ends)
    values = kl.measure(model)
    for name, expected in (("kl_vs_base", 0.143841), ("kl_base_vs_model", 0.130812)):
        assert values[name] == pytest.approx(expected / max_new_tokens, abs=2e-5)
        assert values[name + "_own"] == pytest.approx(expected / max_new_tokens, abs=2e-5)


def test_own_answers_are_those_of_the_model_now():
    """The base says b and ends; the model says a (0.9) and goes on with a or b alike, where the base always ends.

    On the base's answer (b, end) model and base differ at the first token only. On its own answer (a, a) also at
    the second: KL(base ‖ model) there is about 40, the log of 1 / exp(-40), since the model never ends.
    """
    model = known_model(TOKENIZER, {LINE_BREAK: {A: 0.25, B: 0.75}, A: {END: 1.0}, B: {END: 1.0}})
    kl = KlToBase.prepare(model, WeightCopy.of(model), everyday_prompts()[:2], TEMPLATE, max_new_tokens=2)
    set_next_probabilities(model, {LINE_BREAK: {A: 0.9, B: 0.1}, A: {A: 0.6, B: 0.4}, B: {END: 1.0}})
    values = kl.measure(model)
    assert kl.measure(model, own_answers=False) == {name: values[name] for name in ("kl_vs_base", "kl_base_vs_model")}
    first = 0.25 * torch.tensor(0.25 / 0.9).log() + 0.75 * torch.tensor(0.75 / 0.1).log()
    assert values["kl_base_vs_model"] == pytest.approx(float(first) / 2, abs=2e-4)
    assert values["kl_base_vs_model_own"] == pytest.approx((float(first) + 40.0) / 2, abs=2e-3)


def test_the_base_of_a_fresh_adapter_is_the_model_with_the_adapter_switched_off():
    model = fresh_lora()
    kl = KlToBase.prepare(model, WeightCopy.of(model), everyday_prompts()[:5], TEMPLATE, max_new_tokens=6, batch_size=2)
    train_adapter(model)
    model.train()
    values = kl.measure(model)
    assert model.training

    model.eval()
    prompts = [prompt for prompt, _ in kl.base_pairs]
    with model.disable_adapter():  # pyright: ignore[reportCallIssue]
        answers = generate(
            model, prompts, pad_token_id=END, stop_ids=TEMPLATE.end_of_turn_ids, max_new_tokens=6, temperature=0.0
        )
    assert [answer for _, answer in kl.base_pairs] == answers
    reverse, forward, count = 0.0, 0.0, 0
    for prompt, answer in kl.base_pairs:
        ids = torch.tensor([[*prompt, *answer]])
        positions = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        with torch.no_grad():
            logp = model(ids).logits[0, positions].double().log_softmax(-1)
            with model.disable_adapter():  # pyright: ignore[reportCallIssue]
                base_logp = model(ids).logits[0, positions].double().log_softmax(-1)
        reverse += float((logp.exp() * (logp - base_logp)).sum())
        forward += float((base_logp.exp() * (base_logp - logp)).sum())
        count += len(answer)
    assert reverse / count > 0.01
    assert values["kl_vs_base"] == pytest.approx(reverse / count, rel=1e-4)
    assert values["kl_base_vs_model"] == pytest.approx(forward / count, rel=1e-4)


def test_the_batch_size_changes_nothing():
    model = fresh_lora()
    base = WeightCopy.of(model)
    train_adapter(model)
    measured = [
        KlToBase.prepare(model, base, everyday_prompts()[:6], TEMPLATE, 4, batch_size).measure(model)
        for batch_size in (1, 4)
    ]
    assert measured[0] == pytest.approx(measured[1], rel=1e-5)


def test_unchanged_weights_measure_zero_and_measuring_leaves_the_weights_alone():
    model = fresh_lora()
    base = WeightCopy.of(model)
    kl = KlToBase.prepare(model, base, everyday_prompts()[:2], TEMPLATE, max_new_tokens=3)
    assert set(kl.measure(model).values()) == {0.0}
    train_adapter(model)
    before = WeightCopy.of(model)
    again = KlToBase.prepare(model, base, everyday_prompts()[:2], TEMPLATE, max_new_tokens=3)
    assert again.base_pairs == kl.base_pairs  # the base answers, whatever weights the model has by now
    kl.measure(model)
    assert all(torch.equal(value, before.tensors[name]) for name, value in WeightCopy.of(model).tensors.items())


def test_prompts_that_leave_no_room_are_refused():
    model = known_model(TOKENIZER, {})
    with pytest.raises(DataError, match=r"built-in prompt 1: \d+ tokens, but the model has 256 positions"):
        KlToBase.prepare(model, WeightCopy.of(model), everyday_prompts(), TEMPLATE, max_new_tokens=250)
