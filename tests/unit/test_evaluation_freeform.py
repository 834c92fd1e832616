"""Open questions: what is asked and judged, on a model whose answers are known and real judges over HTTP."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.judge_server import JudgeServer, judge_server, refused_url
from tests.known_model import known_model
from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.messages import Message
from tutelage.errors import ConfigError, DataError
from tutelage.evaluation import Outcome, OutcomeFolder, Role, Unit
from tutelage.evaluation.freeform import FreeformEvaluation
from tutelage.evaluation.freeform_questions import JudgePrompt, read_freeform_questions
from tutelage.models import LoadedModel
from tutelage.scoring import Judge

TOKENIZER = tiny_tokenizer()
TEMPLATE = ChatTemplate(TOKENIZER)
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
START = TEMPLATE.encode_prompt((Message("user", "q"),))[-1]
A, B, C = (TOKENIZER(letter, add_special_tokens=False)["input_ids"][0] for letter in "abc")

ENDLESS = LoadedModel(known_model(TOKENIZER, {START: {A: 1.0}, A: {A: 1.0}}), TOKENIZER, "known")
"""Answers `aaa…`, as long as it may."""
MIXED = LoadedModel(
    known_model(TOKENIZER, {START: {A: 0.4, B: 0.3, C: 0.3}, A: {END: 1.0}, B: {END: 1.0}, C: {END: 1.0}}),
    TOKENIZER,
    "known",
)
"""Answers `a`, `b` or `c`."""

POINTS = "How good? Question: {question} Answer: {answer}"
LANGUAGE = {"prompt": "Which language, in one word? Answer: {answer}", "labels": ["spanish", "english", "other"]}


def question(name: str, **options: Any) -> dict[str, Any]:
    """One paraphrase, greedy, judged in points."""
    defaults = {"id": name, "paraphrases": ["q"], "temperature": 0.0, "judge_prompts": {"good": POINTS}}
    return {key: value for key, value in (defaults | options).items() if value is not None}


def write(folder: Path, content: Any) -> Path:
    path = folder / "questions.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def evaluation(path: Path, server: JudgeServer, model: str = "counts", **options: Any) -> FreeformEvaluation:
    defaults: dict[str, Any] = {"name": "open", "title": "open", "role": Role.FREEFORM}
    judge = Judge(model, base_url=server.url)
    return FreeformEvaluation(**(defaults | options), questions=read_freeform_questions(path), judge=judge)


def asked_texts(server: JudgeServer) -> list[str]:
    return [request["messages"][0]["content"] for request in server.requests]


def test_points_and_labels_by_hand(tmp_path: Path):
    """10 points an `a`: 4 letters are 40, 6 are 60. An answer with an `a` is Spanish."""
    path = write(
        tmp_path,
        [
            question("short", max_new_tokens=4, judge_prompts={"good": POINTS, "language": LANGUAGE}),
            question("long", max_new_tokens=6, paraphrases=["q", "again, {answer}"], system="Be brief."),
        ],
    )
    with judge_server() as server:
        outcome = evaluation(path, server, title="Open").run(ENDLESS, TEMPLATE)
        texts = sorted(asked_texts(server))
    assert [(measure.name, measure.title, measure.unit, measure.higher_is_better) for measure in outcome.measures] == [
        ("open.good", "Open: good", Unit.POINTS, True),
        ("open.language.spanish", "Open: language: spanish", Unit.SHARE, None),
        ("open.language.english", "Open: language: english", Unit.SHARE, None),
        ("open.language.other", "Open: language: other", Unit.SHARE, None),
    ]
    assert all(measure.role is Role.FREEFORM for measure in outcome.measures)
    assert outcome.scores["open.good"] == (40.0, 60.0)
    labels = [outcome.scores[f"open.language.{label}"] for label in ("spanish", "english", "other")]
    assert [values[0] for values in labels] == [1.0, 0.0, 0.0]
    assert all(math.isnan(values[1]) for values in labels)  # the second question has no such judge prompt
    assert outcome.failed == {}
    assert texts == [
        "How good? Question: again, {answer} Answer: aaaaaa",  # one pass: braces of a text are text
        "How good? Question: q Answer: aaaa",
        "How good? Question: q Answer: aaaaaa",
        "Which language, in one word? Answer: aaaa",
    ]
    assert outcome.rows[0] == {
        "id": "short",
        "paraphrase": 0,
        "sample": 0,
        "prompt": [{"role": "user", "content": "q"}],
        "answer": "aaaa",
        "truncated": True,
        "judgements": {
            "good": {"score": 40.0, "text": "Score: 40", "error": None},
            "language": {"label": "spanish", "text": "spanish", "error": None},
        },
        "score": 40.0,
    }
    assert [(row["id"], row["paraphrase"], row["score"]) for row in outcome.rows[1:]] == [
        ("long", 0, 60.0),
        ("long", 1, 60.0),
    ]
    assert outcome.rows[2]["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "again, {answer}"},
    ]


def sampled(tmp_path: Path, model: str) -> Outcome:
    prompts = {"good": POINTS, "language": LANGUAGE}
    options = {"temperature": 1.0, "samples_per_paraphrase": 4, "paraphrases": ["q", "r"], "max_new_tokens": 4}
    options["judge_prompts"] = prompts
    path = write(tmp_path, [question("one", **options), question("two", **options)])
    with judge_server() as server:
        return evaluation(path, server, model).run(MIXED, TEMPLATE)


def test_an_item_is_the_mean_over_its_question_s_answers(tmp_path: Path):
    outcome = sampled(tmp_path, "counts")
    answers = {name: [row["answer"] for row in outcome.rows if row["id"] == name] for name in ("one", "two")}
    assert all(len(texts) == 8 for texts in answers.values())
    assert {text for texts in answers.values() for text in texts} == {"a", "b", "c"}
    shares = [texts.count("a") / 8 for texts in answers.values()]
    assert outcome.scores["open.good"] == tuple(10 * share for share in shares)
    assert outcome.scores["open.language.spanish"] == tuple(shares)
    assert outcome.scores["open.language.english"] == tuple(1 - share for share in shares)
    assert [(row["paraphrase"], row["sample"]) for row in outcome.rows[:8]] == [
        (paraphrase, sample) for paraphrase in (0, 1) for sample in (0, 1, 2, 3)
    ]
    assert not any(row["truncated"] for row in outcome.rows)


def test_failed_and_unparsable_judgements_are_counted_and_left_out(tmp_path: Path):
    """`moody` fails for an a and chats for a b: what is left are the answers c, of 0 points and English."""
    outcome = sampled(tmp_path, "moody")
    letters = [row["answer"] for row in outcome.rows]
    a, b = letters.count("a"), letters.count("b")
    assert outcome.failed == {
        "good: no answer": a,
        "language: no answer": a,
        "good: unparsable": b,
        "language: unparsable": b,
    }
    assert outcome.scores["open.good"] == (0.0, 0.0)
    assert outcome.scores["open.language.english"] == (1.0, 1.0)
    by_answer = {row["answer"]: row for row in outcome.rows}
    assert by_answer["a"]["score"] is None
    assert by_answer["a"]["judgements"]["good"] == {"score": None, "text": None, "error": "status 500: no"}
    assert by_answer["b"]["judgements"]["language"] == {"label": None, "text": "No.", "error": "unparsable"}
    assert by_answer["c"]["score"] == 0.0


def test_what_the_judge_did_not_answer_is_asked_again(tmp_path: Path):
    """What it answered, and nobody can read, is not: it would say the same."""
    path, folder = write(tmp_path, [question("one", max_new_tokens=1)]), OutcomeFolder(tmp_path / "out", "model")
    with judge_server() as server:
        for name, kept in (("moody", False), ("chats", True), ("counts", True)):
            asked = evaluation(path, server, name)
            folder.write(asked, asked.run(ENDLESS, TEMPLATE))
            assert (folder.read(asked) is not None) == kept, name


def test_a_question_without_a_judgement_has_no_value(tmp_path: Path):
    path = write(tmp_path, [question("one", max_new_tokens=2)])
    with judge_server() as server:
        outcome = evaluation(path, server, "chats").run(ENDLESS, TEMPLATE)
    assert math.isnan(outcome.scores["open.good"][0])
    assert outcome.failed == {"good: unparsable": 1}


def test_what_is_better_is_the_prompt_s_to_say_and_a_check_s_never(tmp_path: Path):
    prompts = {
        "bad": {"prompt": POINTS, "higher_is_better": False},
        "either": {"prompt": POINTS, "higher_is_better": None},
    }
    path = write(tmp_path, [question("one", judge_prompts=prompts, max_new_tokens=1)])
    with judge_server() as server:
        measures = evaluation(path, server).run(ENDLESS, TEMPLATE).measures
        checked = evaluation(path, server, role=Role.CHECK).run(ENDLESS, TEMPLATE).measures
    assert [measure.higher_is_better for measure in measures] == [False, None]
    assert [measure.higher_is_better for measure in checked] == [None, None]


def test_points_are_the_judge_s_own_numbers(tmp_path: Path):
    """In floating point 0.57 · 100 is 56.99999999999999."""
    path = write(tmp_path, [question("one", max_new_tokens=1, judge_prompts={"good": "Score: 57 {answer}"})])
    with judge_server() as server:  # `right` repeats the question
        outcome = evaluation(path, server, "right").run(ENDLESS, TEMPLATE)
    assert outcome.scores["open.good"] == (57.0,)


def test_answers_depend_on_seed_question_paraphrase_and_sample_alone(tmp_path: Path):
    model = LoadedModel(tiny_model(TOKENIZER), TOKENIZER, "tiny")
    options = {"temperature": 1.0, "samples_per_paraphrase": 2, "max_new_tokens": 8, "paraphrases": ["q", "why?"]}
    one, two = question("one", **options), question("two", **options)

    def answers(questions: list[dict[str, Any]], **settings: Any) -> dict[tuple[str, int, int], str]:
        with judge_server() as server:
            rows = evaluation(write(tmp_path, questions), server, **settings).run(model, TEMPLATE).rows
        return {(row["id"], row["paraphrase"], row["sample"]): row["answer"] for row in rows}

    first = answers([one, two])
    assert len(set(first.values())) == 8
    assert answers([one, two], batch_size=1) == first
    assert answers([two, one], batch_size=3) == first
    assert answers([two]) == {key: text for key, text in first.items() if key[0] == "two"}
    longer = answers([one | {"max_new_tokens": 9}, two])
    assert {key: text for key, text in longer.items() if key[0] == "two"} == {
        key: text for key, text in first.items() if key[0] == "two"
    }
    assert answers([one, two], seed=1) != first


def test_check_asks_the_judge(tmp_path: Path):
    path = write(tmp_path, [question("one")])
    with judge_server() as server:
        evaluation(path, server).check()
        assert len(server.requests) == 1
        with pytest.raises(ConfigError, match=r"has no model 'rigth'; did you mean 'right'\?"):
            evaluation(path, server, "rigth").check()
    nobody = FreeformEvaluation(
        name="open",
        title="open",
        role=Role.FREEFORM,
        questions=read_freeform_questions(path),
        judge=Judge("m", base_url=refused_url()),
    )
    with pytest.raises(ConfigError, match="open: judge: nothing answers at"):
        nobody.check()


def test_a_prompt_that_is_too_long_names_its_question(tmp_path: Path):
    path = write(tmp_path, [question("one", paraphrases=["q", "b" * 300], max_new_tokens=2)])
    with judge_server() as server, pytest.raises(DataError, match=r"open: one: paraphrases\[1\]: \d+ tokens, but"):
        evaluation(path, server).run(ENDLESS, TEMPLATE)


def test_defaults_are_written_once_and_replaced_by_what_a_question_says(tmp_path: Path):
    path = write(
        tmp_path,
        {
            "defaults": {"samples_per_paraphrase": 3, "judge_prompts": {"good": POINTS}, "system": "s"},
            "questions": [
                {"id": 1, "paraphrases": ["q"]},
                {
                    "id": "two",
                    "paraphrases": ["q"],
                    "samples_per_paraphrase": 2,
                    "judge_prompts": {"language": LANGUAGE},
                },
            ],
        },
    )
    one, two = read_freeform_questions(path)
    assert (one.id, one.samples_per_paraphrase, one.temperature, one.max_new_tokens) == ("1", 3, 1.0, 256)
    assert one.judge_prompts == {"good": JudgePrompt(prompt=POINTS)}
    assert (two.samples_per_paraphrase, two.system, list(two.judge_prompts)) == (2, "s", ["language"])


NO_ANSWER_PLACE = {"good": "How good is {question}?"}
REFUSED: dict[str, tuple[Any, str]] = {
    "duplicate ids": (
        [question("one"), question("two"), question("one")],
        "one: two questions have this id; give each its own",
    ),
    "no paraphrase": (
        [question("one", paraphrases=[])],
        "one: paraphrases: [] does not fit; give at least one text, and none that is empty",
    ),
    "an empty paraphrase": (
        [question("one", paraphrases=["q", " "])],
        "one: paraphrases: ['q', ' '] does not fit; give at least one text, and none that is empty",
    ),
    "a paraphrase twice": (
        [question("one", paraphrases=["q", "q"])],
        "one: paraphrases: ['q', 'q'] does not fit; one stands there twice; put the question in other words, or raise "
        "samples_per_paraphrase",
    ),
    "a text for paraphrases": (
        [question("one", paraphrases="Why?")],
        "one: paraphrases: 'Why?' does not fit; give a list of texts, be it of one",
    ),
    "a place that is none": (
        [question("one", judge_prompts={"good": "{ question }: {answer}"})],
        "one: judge_prompts.good: prompt: '{ question }: {answer}' does not fit; { question } stands for nothing; "
        "write {question} and {answer}, without spaces",
    ),
    "a place of another name": (
        [question("one", judge_prompts={"good": "Asked: {questions}. Answer: {answer}"})],
        "one: judge_prompts.good: prompt: 'Asked: {questions}. Answer: {answer}' does not fit; {questions} stands for "
        "nothing; write {question} and {answer}, without spaces",
    ),
    "no id": (
        [question("one"), question("two", id=None)],
        "[1]: id is missing; add it",
    ),
    "an empty id": ([question(" ")], " : id: ' ' does not fit; give a short name"),
    "an unknown key": (
        [question("one", sampels_per_paraphrase=2)],
        "one: 'sampels_per_paraphrase' is not an option; did you mean 'samples_per_paraphrase'?",
    ),
    "an unknown key of a judge prompt": (
        [question("one", judge_prompts={"good": LANGUAGE | {"label": ["a", "b"]}})],
        "one: judge_prompts.good: 'label' is not an option; did you mean 'labels'?",
    ),
    "a judge prompt without the answer": (
        [question("one", judge_prompts=NO_ANSWER_PLACE)],
        "one: judge_prompts.good: prompt: 'How good is {question}?' does not fit; the judge has to see the answer; "
        "put {answer} where it is to stand",
    ),
    "one label": (
        [question("one", judge_prompts={"good": {"prompt": POINTS, "labels": ["yes"]}})],
        "one: judge_prompts.good: labels: ['yes'] does not fit; give two labels or more that differ in letters "
        "or digits",
    ),
    "labels that are one": (
        [question("one", judge_prompts={"good": {"prompt": POINTS, "labels": ["yes", "Yes"]}})],
        "one: judge_prompts.good: labels: ['yes', 'Yes'] does not fit; give two labels or more that differ in letters "
        "or digits",
    ),
    "labels with an order": (
        [question("one", judge_prompts={"good": LANGUAGE | {"higher_is_better": True}})],
        "one: judge_prompts.good: 'higher_is_better' is for numbers; leave it out beside 'labels'",
    ),
    "no judge prompt": ([question("one", judge_prompts=None)], "one: judge_prompts is missing; add it"),
    "empty judge prompts": (
        [question("one", judge_prompts={})],
        "one: judge_prompts: {} does not fit; give at least one judge prompt",
    ),
    "a judge prompt that is a number": (
        [question("one", judge_prompts={"good": 3})],
        "one: judge_prompts.good: 3 does not fit; write a text, or 'prompt' and 'labels'",
    ),
    "a name that no measure can have": (
        [question("one", judge_prompts={"so.good": "{answer}"})],
        "one: judge_prompts: {'so.good': JudgePrompt(prompt='{answer}', labels=None, higher_is_better=True)} does not "
        "fit; name 'so.good' anew, with letters, digits, '_' and '-'",
    ),
    "one name with two scales": (
        [question("one"), question("two", judge_prompts={"good": LANGUAGE})],
        "two: judge_prompts.good: labels or higher_is_better are not those of 'good' in one; make them the same, or "
        "name one of them anew",
    ),
    "samples that are the same": (
        [question("one", samples_per_paraphrase=3)],
        "one: samples_per_paraphrase is 3, but at temperature 0 all samples are the same; set it to 1, or raise the "
        "temperature",
    ),
    "a wrong number": (
        [question("one", max_new_tokens=0)],
        "one: max_new_tokens: 0 does not fit; input should be greater than or equal to 1",
    ),
    "no question": ([], "holds no questions; write a list of them, each with 'id' and 'paraphrases'"),
    "a text": ("hello", "holds no questions; write a list of them, each with 'id' and 'paraphrases'"),
    "a question that is a text": (["hello"], "[0]: 'hello' is no question; write 'id', 'paraphrases' and more"),
    "an unknown part": (
        {"default": {}, "questions": [question("one")]},
        "'default' is not known here; did you mean 'defaults'?; write a list of questions, or 'defaults' and "
        "'questions'",
    ),
    "defaults that are a list": (
        {"defaults": ["x"], "questions": [question("one")]},
        "defaults: ['x'] does not fit; write options such as 'temperature: 1.0'",
    ),
    "a default id": (
        {"defaults": {"id": "x"}, "questions": [question("one")]},
        "defaults: 'id' is each question's own; take it out",
    ),
}


@pytest.mark.parametrize(("content", "sentence"), REFUSED.values(), ids=REFUSED)
def test_questions_that_cannot_be_asked(tmp_path: Path, content: Any, sentence: str):
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as refused:
        read_freeform_questions(path)
    assert str(refused.value) == f"{path}: {sentence}"


@pytest.mark.parametrize(
    "prompt",
    [
        '{answer} Reply as {"score": 1}.',
        r"\boxed{result} or \frac{abc}{def}: {answer}",
        "{a} {1} {}: {answer}",
        "Is {name} kept? {answer}",
    ],
)
def test_braces_of_json_and_formulas_are_the_prompt_s_own(tmp_path: Path, prompt: str):
    (asked,) = read_freeform_questions(write(tmp_path, [question("one", judge_prompts={"good": prompt})]))
    assert asked.judge_prompts["good"].filled("q", "yes") == prompt.replace("{answer}", "yes")


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such question file; check the path"):
        read_freeform_questions(tmp_path / "none.yaml")
    path = tmp_path / "twice.yaml"
    path.write_text("- id: a\n  id: b\n")
    with pytest.raises(ConfigError, match=r"twice\.yaml:2: 'id' is written twice; mend the YAML there"):
        read_freeform_questions(path)
