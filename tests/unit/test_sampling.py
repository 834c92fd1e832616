"""Rollouts from models of known distributions: what is drawn, what it depends on, and what it leaves behind."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import GenerationConfig

from tests.known_model import known_model, set_next_probabilities
from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.config import SdftConfig
from tutelage.models import takes_trees
from tutelage.rollouts import Teacher, TemplatePhrases, generate, rollout_seed

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
A, B, C, D = 100, 101, 102, 103

KNOWN = {A: {A: 0.5, B: 0.3, C: 0.15, D: 0.05}}
DRAWS = 2000


def drawn(model: nn.Module, seed: int = 0, **options: Any) -> Counter[int]:
    """How often each token follows A in `DRAWS` draws of one token each."""
    responses = generate(
        model,
        [[A]] * DRAWS,
        pad_token_id=EOS,
        stop_ids=[EOS],
        max_new_tokens=1,
        seeds=[rollout_seed(seed, row) for row in range(DRAWS)],
        batch_size=500,
        **options,
    )
    return Counter(token for (token,) in responses)


def assert_drawn_from(counts: Counter[int], probabilities: Mapping[int, float]) -> None:
    """Each token's share within 4 standard deviations, and no other token at all."""
    assert counts.keys() == probabilities.keys()
    for token, p in probabilities.items():
        assert abs(counts[token] / DRAWS - p) <= 4 * math.sqrt(p * (1 - p) / DRAWS), token


def test_temperature_one_draws_from_the_model_itself() -> None:
    assert_drawn_from(drawn(known_model(TOKENIZER, KNOWN)), KNOWN[A])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("adapted", [False, True])
def test_what_a_model_comes_with_changes_no_distribution(adapted: bool) -> None:
    """A repetition penalty of 1.5 would take A, which is in the prompt, far below its share."""
    plain: Any = known_model(TOKENIZER, KNOWN)
    model: Any = PeftModel(plain, LoraConfig(target_modules=["q_proj"])) if adapted else plain
    settings = GenerationConfig(repetition_penalty=1.5, top_k=2, min_new_tokens=1)
    model.generation_config = settings
    assert_drawn_from(drawn(model), KNOWN[A])
    assert model.generation_config is settings


def test_temperature_half_squares_the_probabilities() -> None:
    """p² / Σ p² with Σ p² = 0.25 + 0.09 + 0.0225 + 0.0025 = 0.365."""
    expected = {A: 0.25 / 0.365, B: 0.09 / 0.365, C: 0.0225 / 0.365, D: 0.0025 / 0.365}
    assert_drawn_from(drawn(known_model(TOKENIZER, KNOWN), temperature=0.5), expected)


def test_temperature_two_flattens() -> None:
    roots = {token: math.sqrt(p) for token, p in KNOWN[A].items()}
    expected = {token: root / sum(roots.values()) for token, root in roots.items()}
    # exp(-40 / 2) is left for each of the other tokens: none is drawn.
    assert_drawn_from(drawn(known_model(TOKENIZER, KNOWN), temperature=2.0), expected)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.45, {A: 1.0}),
        (0.79, {A: 0.5 / 0.8, B: 0.3 / 0.8}),
        (0.81, {A: 0.5 / 0.95, B: 0.3 / 0.95, C: 0.15 / 0.95}),
        (0.999, KNOWN[A]),
    ],
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, kept: dict[int, float]) -> None:
    assert_drawn_from(drawn(known_model(TOKENIZER, KNOWN), top_p=top_p), kept)


def test_top_p_is_taken_after_the_temperature() -> None:
    """At T = ½, A and B hold (0.25 + 0.09) / 0.365 = 0.93 of the mass; at T = 1 only 0.8."""
    counts = drawn(known_model(TOKENIZER, KNOWN), temperature=0.5, top_p=0.9)
    assert_drawn_from(counts, {A: 0.25 / 0.34, B: 0.09 / 0.34})


def test_draws_follow_the_present_weights() -> None:
    model = known_model(TOKENIZER, KNOWN)
    assert_drawn_from(drawn(model), KNOWN[A])
    changed = {C: 0.7, D: 0.3}
    set_next_probabilities(model, {A: changed})
    assert_drawn_from(drawn(model), changed)


def test_later_tokens_use_draws_of_their_own() -> None:
    """A fair coin twice: four outcomes of ¼ each. A draw used twice would give two of ½."""
    fair = {A: 0.5, B: 0.5}
    responses = generate(
        known_model(TOKENIZER, {A: fair, B: fair}),
        [[A]] * DRAWS,
        pad_token_id=EOS,
        stop_ids=[EOS],
        max_new_tokens=2,
        seeds=[rollout_seed(1, row) for row in range(DRAWS)],
        batch_size=500,
    )
    counts = Counter(map(tuple, responses))
    for pair in ((A, A), (A, B), (B, A), (B, B)):
        assert abs(counts[pair] / DRAWS - 0.25) <= 4 * math.sqrt(0.25 * 0.75 / DRAWS), pair


# --- what a rollout depends on ------------------------------------------------------------------------------------

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [8], [20, 21]]
SEEDS = [rollout_seed(7, 0, row, 0) for row in range(len(PROMPTS))]


def roll(model: nn.Module, rows: list[int], **options: Any) -> list[list[int]]:
    defaults: dict[str, Any] = {"pad_token_id": EOS, "stop_ids": [EOS], "max_new_tokens": 12}
    prompts, seeds = [PROMPTS[row] for row in rows], [SEEDS[row] for row in rows]
    return generate(model, prompts, seeds=seeds, **(defaults | options))


def test_a_rollout_is_its_rows_own() -> None:
    """The same whatever the batch size, the order and the other rows; two rows of one prompt differ by their seed."""
    model = tiny_model(TOKENIZER)
    together = roll(model, [0, 1, 2, 3, 4])
    assert together[1] != together[3]
    for batch_size in (1, 2, 3):
        assert roll(model, [0, 1, 2, 3, 4], batch_size=batch_size) == together
    assert roll(model, [4, 2, 0, 3, 1]) == [together[row] for row in (4, 2, 0, 3, 1)]
    assert roll(model, [2]) == [together[2]]
    assert roll(model, []) == []


def test_another_seed_another_rollout() -> None:
    model = tiny_model(TOKENIZER)
    prompts = [[5, 6, 7]] * 20
    options: dict[str, Any] = {"pad_token_id": EOS, "stop_ids": [EOS], "max_new_tokens": 8}
    responses = generate(model, prompts, seeds=list(range(20)), **options)
    assert len(set(map(tuple, responses))) == 20
    assert generate(model, prompts, seeds=[3] * 20, **options) == [responses[3]] * 20


def test_a_seed_is_what_the_row_is() -> None:
    identities = [(seed, step, row, index) for seed in (0, 7) for step in (0, 1) for row in (0, 11) for index in (0, 1)]
    seeds = [rollout_seed(*identity) for identity in identities]
    assert len(set(seeds)) == len(identities)
    assert rollout_seed(1, 11) != rollout_seed(11, 1) != rollout_seed(1, 1, 1)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # `printf 7,0,3,0 | sha256sum`, its first 16 digits halved: the same on every machine and in every session.
    assert rollout_seed(7, 0, 3, 0) == 0xA4C4E13F89270BD2 >> 1


def test_every_prompt_needs_a_seed_unless_greedy() -> None:
    model = tiny_model(TOKENIZER)
    options: dict[str, Any] = {"pad_token_id": EOS, "stop_ids": [EOS], "max_new_tokens": 1}
    with pytest.raises(ValueError, match="2 prompts need as many seeds, not 1"):
        generate(model, [[5], [6]], seeds=[1], **options)
    with pytest.raises(ValueError, match="1 prompts need as many seeds, not 0"):
        generate(model, [[5]], **options)
    assert generate(model, [[5]], temperature=0.0, **options) == [[greedy(model, [5])]]


def greedy(model: nn.Module, ids: list[int]) -> int:
    with torch.no_grad():
        return int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())


def test_temperature_zero_is_the_argmax_at_every_step() -> None:
    model = tiny_model(TOKENIZER)
    responses = roll(model, [0, 1, 2, 3, 4], temperature=0.0)
    assert responses[1] == responses[3]
    for prompt, response in zip(PROMPTS, responses, strict=True):
        expected: list[int] = []
        while len(expected) < 12 and (not expected or expected[-1] != EOS):
            expected.append(greedy(model, prompt + expected))
        assert response == expected


# --- where a response ends ----------------------------------------------------------------------------------------


def test_the_end_of_turn_is_kept_and_nothing_after_it_where_pad_is_eos() -> None:
    """One row ends at once, one after two tokens, one never: the shorter ones are padded with eos in the batch."""
    always = {A: {EOS: 1.0}, B: {C: 1.0}, C: {EOS: 1.0}, D: {D: 1.0}, EOS: {EOS: 1.0}}
    model = known_model(TOKENIZER, always)
    responses = generate(model, [[A], [5, B], [D]], pad_token_id=EOS, stop_ids=[EOS], max_new_tokens=4, temperature=0.0)
    assert responses == [[EOS], [C, EOS], [D, D, D, D]]


def test_any_of_several_stop_tokens_ends_a_response() -> None:
    model = known_model(TOKENIZER, {A: {B: 1.0}, B: {EOS: 1.0}, C: {D: 1.0}, D: {A: 1.0}})
    responses = generate(model, [[A], [C]], pad_token_id=0, stop_ids={EOS, D}, max_new_tokens=4, temperature=0.0)
    assert responses == [[B, EOS], [D]]


def test_an_eos_in_the_prompt_ends_nothing() -> None:
    model = known_model(TOKENIZER, {A: {B: 1.0}, B: {EOS: 1.0}})
    responses = generate(
        model, [[EOS, A], [EOS, EOS, 5, A]], pad_token_id=EOS, stop_ids=[EOS], max_new_tokens=4, temperature=0.0
    )
    assert responses == [[B, EOS], [B, EOS]]


# --- what is left behind ------------------------------------------------------------------------------------------


def state_of(model: Any) -> dict[str, Any]:
    return {
        "modes": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "use_cache": model.config.use_cache,
        "generation": model.generation_config.to_dict(),
        "checkpointing": [
            (
                getattr(module, "gradient_checkpointing", None),
                getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", None),
            )
            for module in model.modules()
        ],
        "random": torch.get_rng_state().tolist(),
        "grad": torch.is_grad_enabled(),
    }


def model_in_training() -> Any:
    """Half of it frozen and in evaluation mode, checkpointing with arguments that are not the default."""
    model: Any = tiny_model(TOKENIZER)
    model.train()
    model.model.layers[0].eval()
    model.model.embed_tokens.weight.requires_grad_(False)
    model.config.use_cache = False
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    takes_trees(model)  # found out by trying, once: not to be counted among the passes of a test
    return model


def test_sampling_leaves_the_model_and_the_random_state_as_they_were() -> None:
    model = model_in_training()
    before = state_of(model)
    assert any(keywords == {"use_reentrant": False} for _, keywords in before["checkpointing"])
    responses = roll(model, [0, 1, 2, 3, 4])
    assert state_of(model) == before
    # In evaluation mode, so without checkpointing, and with the same result as a model that never trained.
    assert responses == roll(tiny_model(TOKENIZER), [0, 1, 2, 3, 4])


def test_the_state_is_restored_also_when_generation_raises() -> None:
    model = model_in_training()
    before = state_of(model)
    seen: list[tuple[bool, bool]] = []

    def breaks_in_the_second_token(module: nn.Module, *arguments: Any) -> None:
        seen.append((module.training, torch.is_grad_enabled()))
        if len(seen) == 2:
            raise RuntimeError("out of memory")

    hook = model.model.layers[1].register_forward_pre_hook(breaks_in_the_second_token)
    with pytest.raises(RuntimeError, match="out of memory"):
        roll(model, [0, 1, 2])
    hook.remove()
    assert seen == [(False, False), (False, False)]
    assert state_of(model) == before


def test_generation_uses_the_cache_whatever_the_config_says() -> None:
    """After the prompt, one position a step."""
    model = model_in_training()
    lengths: list[int] = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    roll(model, [2], max_new_tokens=4, stop_ids=[319])
    hook.remove()
    assert lengths == [6, 1, 1, 1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_prompts_begin_with_is_computed_once_and_changes_nothing(temperature: float) -> None:
    """Five shared tokens, padding behind them: the shorter prompt's rest of 2 is padded to the longer one's 4.

    The hook sends it the general way; for the other, see `test_rollout_decoder.py`.
    """
    model: Any = tiny_model(TOKENIZER)
    takes_trees(model)  # found out by trying, once: not to be counted among the passes
    beginning = [5, 6, 7, 8, 9]
    prompts = [[*beginning, 10, 11], [*beginning, 12, 13, 14, 15], [*beginning, 10, 11]]
    options: dict[str, Any] = {"pad_token_id": EOS, "stop_ids": [EOS], "max_new_tokens": 8, "temperature": temperature}
    alone = [
        generate(model, [prompt], seeds=[seed], **options)[0] for prompt, seed in zip(prompts, SEEDS, strict=False)
    ]
    shapes: list[tuple[int, int]] = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape[:2]))
    assert generate(model, prompts, seeds=SEEDS[:3], **options) == alone
    hook.remove()
    assert [tuple(shape) for shape in shapes[:3]] == [(1, 5), (3, 4), (3, 1)]


def test_the_student_has_its_own_bits_after_the_teacher_looked_also_when_it_raises() -> None:
    model = tiny_model(TOKENIZER)
    teacher = Teacher(model, SdftConfig())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    student = {name: value.clone() for name, value in model.state_dict().items()}
    as_student = roll(model, [0], temperature=0.0)
    with teacher.applied(model):
        as_teacher = roll(model, [0], temperature=0.0)
    with pytest.raises(ValueError, match="1 prompts need as many seeds"), teacher.applied(model):
        generate(model, [[5]], pad_token_id=EOS, stop_ids=[EOS], max_new_tokens=1)
    assert all(torch.equal(value, student[name]) for name, value in model.state_dict().items())
    assert as_teacher == roll(tiny_model(TOKENIZER), [0], temperature=0.0) != as_student
    assert roll(model, [0], temperature=0.0) == as_student


# --- leaks of the template ----------------------------------------------------------------------------------------

TEMPLATE = "{question}\n\nHere is an example of a good answer:\n{demonstration}\nNow answer in your own words."


@pytest.mark.parametrize(
    ("response", "leaks"),
    [
        ("The answer is 4.", False),
        ("Here is an example: 4.", True),
        ("HERE   is\nan, example", True),  # case, spaces and punctuation don't hide it
        ("an example of", True),  # three words in a row, from the middle
        ("an example", False),  # two are too common
        ("example an of", False),  # the words, not the phrase
        ("a good answer now answer in", True),  # "now answer in" is in the second piece
        ("good answer now", False),  # no phrase goes across a placeholder
        ("", False),
    ],
)
def test_a_phrase_of_three_words_of_the_template_is_a_leak(response: str, leaks: bool) -> None:
    assert TemplatePhrases(TEMPLATE).leaked(response, question="What is 2+2?", demonstration="2+2 is 4.") is leaks


def test_a_phrase_that_question_or_demonstration_hold_is_not_a_leak() -> None:
    phrases = TemplatePhrases(TEMPLATE)
    response = "Here is an example of a good answer."
    assert phrases.leaked(response, "Give an example of a good answer.", "Here is an apple.")  # "is an example"
    innocent = "Here is an example of a good answer to copy."
    assert not phrases.leaked(response, innocent, "")
    assert not phrases.leaked(response, "", innocent)
    # Half of the phrases in the one and half in the other is innocent too.
    assert not phrases.leaked(response, "here is an example of", "an example of a good answer")


def test_share_of_leaks() -> None:
    phrases = TemplatePhrases(TEMPLATE)
    leak, clean = ("here is an example", "", ""), ("four", "", "")
    assert phrases.share([leak, clean, clean, leak, leak]) == 0.6
    assert phrases.share([]) == 0.0
