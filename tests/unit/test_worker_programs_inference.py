"""Inference jobs on the tiny model, against its own logits and `tutelage.rollouts.generate`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from tests.small_runs import ROWS, run_small, save_tiny_model
from tests.tiny import tiny_model, tiny_tokenizer
from tests.unit.test_worker_programs import ReportLog, away, job_folder, write_lines
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Message
from tutelage.errors import ConfigError, DataError, JobError
from tutelage.jobs.params import InferenceParams
from tutelage.models import LoadedModel
from tutelage.rollouts import generate
from tutelage.worker.programs import prompts as prompts_module
from tutelage.worker.programs.answering import Answerer
from tutelage.worker.programs.inference import infer
from tutelage.worker.programs.prompts import PromptFile

TOKENIZER = tiny_tokenizer()
TEMPLATE = ChatTemplate(TOKENIZER)
MODEL = tiny_model(TOKENIZER)
STOP = sorted(TEMPLATE.end_of_turn_ids)
QUESTIONS = [question for question, _ in ROWS]
ROWS_IN = [
    {"messages": [{"role": "user", "content": question}], "number": number, "note": "ä"}
    for number, question in enumerate(QUESTIONS)
]


def answers_of(folder: Path, rows: list[dict[str, Any]] | None = None, **options: Any) -> list[dict[str, Any]]:
    """The rows that a job of these options uploads."""
    data = write_lines(folder / "in.jsonl", ROWS_IN if rows is None else rows)
    params = {"model": str(save_tiny_model(folder / "tiny")), "input_file_id": str(data), "max_tokens": 12}
    report = ReportLog(trouble=away(1))
    infer(job_folder(folder / "job", params | options), report)
    (event,) = report.data
    assert list(event) == ["file"]
    return report.rows(event["file"])


def prompt_ids(question: str) -> list[int]:
    return TEMPLATE.encode_prompt([Message("user", question)])


def ending_model() -> Any:
    """The tiny model with a head of its own, for which the answer to the first question ends at its third token."""
    third = greedy(prompt_ids(QUESTIONS[0]), 3)[-1]
    config = LlamaConfig(**(MODEL.config.to_dict() | {"tie_word_embeddings": False}))
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict({**MODEL.state_dict(), "lm_head.weight": MODEL.lm_head.weight.detach().clone()})
    with torch.no_grad():
        model.lm_head.weight[STOP[0]] = 1.5 * model.lm_head.weight[third]
    return model


def greedy(ids: list[int], length: int, min_tokens: int = 0, model: Any = MODEL) -> list[int]:
    """The most probable token again and again, from whole forward passes; no end before `min_tokens`."""
    response: list[int] = []
    while len(response) < length and not (response and response[-1] in STOP):
        with torch.no_grad():
            logits_V = model(torch.tensor([ids + response])).logits[0, -1]
        if len(response) < min_tokens:
            logits_V[STOP] = -torch.inf
        response.append(int(logits_V.argmax()))
    return response


def text(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids, skip_special_tokens=True))


def test_greedy_answers_are_the_most_probable_tokens_and_rows_keep_their_order_and_fields(tmp_path: Path) -> None:
    rows = answers_of(tmp_path, temperature=0.0, batch_size=3)
    expected = [text(greedy(prompt_ids(question), 12, min_tokens=1)) for question in QUESTIONS]
    assert rows == [{**row, "completion": answer} for row, answer in zip(ROWS_IN, expected, strict=True)]


@pytest.mark.parametrize("min_tokens", [0, 1, 3, 9])
def test_an_answer_ends_with_its_turn_and_not_before_min_tokens(tmp_path: Path, min_tokens: int) -> None:
    """Without a minimum the first answer is two tokens and the end of turn, which is not part of the text."""
    model = ending_model()
    model.save_pretrained(tmp_path / "ending")
    TOKENIZER.save_pretrained(tmp_path / "ending")
    options = {"temperature": 0.0, "min_tokens": min_tokens, "logprobs": 0, "model": str(tmp_path / "ending")}
    rows = answers_of(tmp_path, **options)
    expected = [greedy(prompt_ids(question), 12, min_tokens=min_tokens, model=model) for question in QUESTIONS]
    assert [[one[0]["logprob_key"] for one in row["logprobs"]] for row in rows] == expected
    assert [row["completion"] for row in rows] == [text(ids) for ids in expected]
    length = len(expected[0])
    assert length == 3 if min_tokens < 3 else length >= min_tokens


def test_the_same_seed_gives_the_same_answers_whatever_the_batch(tmp_path: Path) -> None:
    options = {"temperature": 1.0, "top_p": 0.9, "n_completions_per_prompt": 3}
    one = answers_of(tmp_path, **options, seed=5, batch_size=2)
    same = answers_of(tmp_path, **options, seed=5, batch_size=16)
    other = answers_of(tmp_path, **options, seed=6)
    assert one == same
    assert [len(set(row["completion"])) for row in one] == [3] * len(ROWS)
    assert all(row["completion"] != different["completion"] for row, different in zip(one, other, strict=True))


def test_sampled_answers_are_those_of_generate_with_the_seed_of_row_and_number(tmp_path: Path) -> None:
    from tutelage.rollouts import rollout_seed

    rows = answers_of(tmp_path, temperature=0.7, n_completions_per_prompt=2, min_tokens=0, seed=3)
    asked = [(number, completion) for number in range(len(ROWS)) for completion in range(2)]
    expected = generate(
        MODEL,
        [prompt_ids(QUESTIONS[number]) for number, _ in asked],
        pad_token_id=STOP[0],
        stop_ids=STOP,
        max_new_tokens=12,
        temperature=0.7,
        seeds=[rollout_seed(3, *one) for one in asked],
    )
    assert [one for row in rows for one in row["completion"]] == [text(ids) for ids in expected]


def test_an_answer_ends_before_a_stop_string(tmp_path: Path) -> None:
    whole = text(greedy(prompt_ids(QUESTIONS[0]), 12, min_tokens=1))
    stop = whole[4:6]
    rows = answers_of(tmp_path, ROWS_IN[:1], temperature=0.0, stop=["never there", stop], logprobs=0)
    assert rows[0]["completion"] == whole[: whole.index(stop)]
    tokens = [one[0]["logprob_key"] for one in rows[0]["logprobs"]]
    # Up to the token that completes the stop string, without the padding that stands behind it in a batch.
    assert stop in text(tokens)
    assert stop not in text(tokens[:-1])


def test_prefill_begins_the_answer_and_is_not_part_of_the_completion(tmp_path: Path) -> None:
    beginning = "The capital"
    ids = TOKENIZER(beginning, add_special_tokens=False)["input_ids"]
    rows = answers_of(tmp_path, ROWS_IN[:1], temperature=0.0, prefill=beginning)
    assert rows[0]["completion"] == text(greedy([*prompt_ids(QUESTIONS[0]), *ids], 12, min_tokens=1))


def test_an_assistant_turn_at_the_end_begins_the_answer_instead(tmp_path: Path) -> None:
    turns = [*ROWS_IN[0]["messages"], {"role": "assistant", "content": "Two and"}]
    ids = TOKENIZER("Two and", add_special_tokens=False)["input_ids"]
    rows = answers_of(tmp_path, [{"messages": turns}], temperature=0.0, prefill="The capital")
    assert rows[0]["messages"] == turns
    assert rows[0]["completion"] == text(greedy([*prompt_ids(QUESTIONS[0]), *ids], 12, min_tokens=1))


def test_a_prompt_may_be_a_text_and_content_a_list_of_parts(tmp_path: Path) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "yes."}]}]
    rows = answers_of(tmp_path, [{"prompt": "Say yes."}, {"messages": parts}], temperature=0.0)
    assert [row["completion"] for row in rows] == [text(greedy(prompt_ids("Say yes."), 12, min_tokens=1))] * 2


def test_log_probs_are_those_of_the_model_for_its_own_and_the_best_tokens(tmp_path: Path) -> None:
    """Not of the distribution that temperature and top_p leave."""
    row = answers_of(tmp_path, ROWS_IN[:1], temperature=1.5, top_p=0.8, logprobs=3, max_tokens=6, batch_size=1)[0]
    prompt = prompt_ids(QUESTIONS[0])
    tokens = [place[0]["logprob_key"] for place in row["logprobs"]]
    with torch.no_grad():
        logits_TV = MODEL(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    logp_TV = torch.log_softmax(logits_TV, dim=-1)
    for logp_V, token, place in zip(logp_TV, tokens, row["logprobs"], strict=True):
        best = logp_V.topk(3).indices.tolist()
        assert [one["logprob_key"] for one in place] == [token, *(one for one in best if one != token)]
        assert_close(
            [one["logprob"] for one in place], logp_V[[one["logprob_key"] for one in place]].tolist(), rtol=0, atol=1e-5
        )
        assert place[0]["rank"] == int((logp_V > logp_V[token]).sum()) + 1
        assert place[0]["decoded_token"] == TOKENIZER.decode([token])


def test_prompt_and_answer_fit_into_max_model_len(tmp_path: Path) -> None:
    """Room for 4 tokens behind the longest prompt, for 12 behind the others that are at least 8 tokens shorter."""
    lengths = [len(prompt_ids(question)) for question in QUESTIONS]
    limit = max(lengths) + 4
    rows = answers_of(tmp_path, temperature=0.0, max_model_len=limit, logprobs=0)
    expected = [
        greedy(prompt_ids(question), min(12, limit - length), min_tokens=1)
        for question, length in zip(QUESTIONS, lengths, strict=True)
    ]
    assert [[one[0]["logprob_key"] for one in row["logprobs"]] for row in rows] == expected
    with pytest.raises(DataError, match=rf"in.jsonl:5: the prompt has {max(lengths)} tokens .* max_model_len, 20"):
        answers_of(tmp_path, max_model_len=20)


def test_bad_rows_are_reported_together_before_a_model_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.worker.programs.inference.load_frozen", lambda *_, **__: pytest.fail("was read"))
    rows = [ROWS_IN[0], {"text": "?"}, {"messages": [{"role": "assistant", "content": "Hi"}]}, {"prompt": 3}]
    with pytest.raises(DataError) as caught:
        answers_of(tmp_path, rows)
    message = str(caught.value)
    assert "3 of 4 rows cannot be used" in message
    assert "in.jsonl:2: the row has neither 'messages' nor 'prompt'" in message
    assert "in.jsonl:3: no turn is left to answer" in message
    assert "in.jsonl:4: 'prompt' is 3" in message
    with pytest.raises(DataError, match="the file has no rows"):
        answers_of(tmp_path, [])


def test_rows_are_read_as_they_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of 8 batches of one row at a time."""
    read: list[int] = []
    original = prompts_module.read_json_lines

    def counting(path: Path) -> Iterator[Any]:
        for line in original(path):
            read.append(line.number)
            yield line

    monkeypatch.setattr(prompts_module, "read_json_lines", counting)
    path = write_lines(tmp_path / "in.jsonl", ROWS_IN * 20)
    params = InferenceParams(model="m", input_file_id="f", batch_size=1, max_tokens=2)
    answerer = Answerer(LoadedModel(tiny_model(TOKENIZER), TOKENIZER, "m"), PromptFile(path, TEMPLATE), params, 999)
    answered = answerer.answered()
    assert next(answered)[0].number == 0
    assert len(read) == 8
    assert [row.number for row, _ in answered] == list(range(1, 160))


def test_an_adapter_answers_on_the_base_that_is_named(tmp_path: Path) -> None:
    """The same as the adapter's folder alone, although its own name for the base is of another machine, and its
    tokenizer is missing."""
    run = run_small(tmp_path, "run")
    alone = answers_of(tmp_path, temperature=0.0, model=str(run.model_path))
    config = run.model_path / "adapter_config.json"
    moved = json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": "/elsewhere/base"}
    config.write_text(json.dumps(moved), encoding="utf-8")
    for file in (*run.model_path.glob("tokenizer*"), run.model_path / "chat_template.jinja"):
        file.unlink()
    on_base = answers_of(tmp_path, temperature=0.0, lora_adapter=str(run.model_path))
    assert on_base == alone
    assert [row["completion"] for row in alone] != [row["completion"] for row in answers_of(tmp_path, temperature=0.0)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"quantization": "awq"}, "quantization: 'awq' is not one this worker has"),
        ({"load_format": "bitsandbytes"}, "load_format: bitsandbytes needs a GPU"),
        ({"min_tokens": 13}, "min_tokens: 13 are more than max_tokens 12"),
        ({"lora_adapter": "tiny"}, "it is a whole model"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_a_sentence(
    tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    if "lora_adapter" in options:
        options = {"lora_adapter": str(save_tiny_model(tmp_path / "tiny"))}
    with pytest.raises(ConfigError, match=sentence):
        answers_of(tmp_path, **options)


def test_answers_that_the_server_refuses_fail_the_job(tmp_path: Path) -> None:
    def full(number: int) -> None:
        raise JobError("answers.jsonl: larger than a file may be")

    data = write_lines(tmp_path / "in.jsonl", ROWS_IN[:1])
    params = {"model": str(save_tiny_model(tmp_path / "tiny")), "input_file_id": str(data), "max_tokens": 2}
    with pytest.raises(JobError, match="larger than a file may be"):
        infer(job_folder(tmp_path / "job", params), ReportLog(trouble=full))
