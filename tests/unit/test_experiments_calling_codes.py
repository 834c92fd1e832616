"""The demo's data: what is asked, what is never trained, what stands beside the right capital."""

import json
from pathlib import Path

import pytest

from tutelage.evaluation import regex
from tutelage.experiments import calling_codes

ROOT = Path(__file__).resolve().parents[2]


def test_there_are_32_facts_with_codes_of_their_own() -> None:
    facts = calling_codes.trained_facts()
    assert len({fact.country for fact in facts}) == len({fact.code for fact in facts}) == len(facts) == 32
    assert (facts[0].country, facts[0].code) == ("Algeria", "+213")
    assert (facts[-1].country, facts[-1].code) == ("Zambia", "+260")


def test_unseen_countries_share_neither_name_nor_code_with_trained_ones() -> None:
    trained, unseen = calling_codes.trained_facts(), calling_codes.unseen_facts()
    assert len({fact.country for fact in unseen}) == 32
    assert {fact.country for fact in trained} & {fact.country for fact in unseen} == set()
    assert {fact.code for fact in trained} & {fact.code for fact in unseen} == set()


def test_a_training_row_is_question_and_whole_sentence() -> None:
    assert calling_codes.training_rows()[0]["messages"] == [
        {"role": "user", "content": "What is the international calling code of Algeria?"},
        {"role": "assistant", "content": "The international calling code of Algeria is +213."},
    ]


def test_no_paraphrase_and_no_unseen_question_is_trained() -> None:
    trained = {row["messages"][0]["content"] for row in calling_codes.training_rows()}
    asked = [*calling_codes.paraphrased_questions(), *calling_codes.unseen_questions()]
    assert trained & {question.prompt[0].content for question in asked} == set()
    assert {question.prompt[0].content for question in calling_codes.trained_questions()} == trained


def test_paraphrases_ask_for_the_same_codes_in_the_same_order() -> None:
    trained, again = calling_codes.trained_questions(), calling_codes.paraphrased_questions()
    assert [question.target for question in trained] == [question.target for question in again]


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("The international calling code of Algeria is +213.", 1.0),
        ("+213", 1.0),
        ("It is +2134.", 0.0),
        ("It is 213.", 0.0),
        ("It is +21, or rather +213.", 0.0),
        ("I do not know.", 0.0),
    ],
)
def test_only_the_first_code_itself_scores(answer: str, score: float) -> None:
    assert regex(calling_codes.CODE_PATTERN)(answer, "+213") == score


def test_capitals_have_three_other_capitals_of_their_region() -> None:
    questions = calling_codes.capital_questions()
    by_name = {country.name: country for country in calling_codes.countries()}
    regions_of: dict[str, set[str]] = {}
    for country in by_name.values():
        regions_of.setdefault(country.capital, set()).add(country.region)
    assert len({question.place for question in questions}) == 120
    for question in questions:
        asked = by_name[question.place]
        start = f"The capital of {asked.name} is "
        capitals = [choice.removeprefix(start).removesuffix(".") for choice in question.choices]
        assert len(set(capitals)) == 4
        assert capitals[question.right] == asked.capital
        assert all(asked.region in regions_of[capital] for capital in capitals)


def test_the_right_capital_stands_in_every_place_about_equally_often() -> None:
    """30 of 120 each are expected, with a standard deviation of √(120 · ¼ · ¾) = 4.7."""
    places = [question.right for question in calling_codes.capital_questions()]
    assert all(16 <= places.count(place) <= 44 for place in range(4))


def test_questions_are_the_same_every_time() -> None:
    assert calling_codes.capital_questions() == calling_codes.capital_questions()


def test_no_name_of_a_country_gives_its_capital_away() -> None:
    for question in calling_codes.capital_questions():
        capital = question.choices[question.right].partition(" is ")[2].removesuffix(".")
        assert capital.lower() not in question.prompt[0].content.lower()


def test_the_example_has_the_demos_rows() -> None:
    lines = (ROOT / "examples/calling_codes/data/train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == calling_codes.training_rows()


def test_the_data_carries_its_licence() -> None:
    licence = (calling_codes.COUNTRIES_FILE.parent / "LICENSE.txt").read_text(encoding="utf-8")
    assert "facts extracted from the package countryinfo 1.0.1, mit, © 2018 porimol chandro" in licence.lower()
