"""The demo's data: calling codes as new knowledge, capitals as prior knowledge, both from `countries.csv`. Pure.

Not here: how a run is trained on it (`demo.py`), how a model is asked (`evaluate.py`).
"""

import csv
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tutelage.data.conversations import Message
from tutelage.evaluation import ChoiceQuestion, Question

COUNTRIES_FILE = Path(__file__).parent / "demo_data" / "countries.csv"

QUESTION = "What is the international calling code of {country}?"
PARAPHRASE = "What is the telephone dialling code for {country}?"
ANSWER = "The international calling code of {country} is {code}."
"""A whole sentence, as the model itself would answer: a terse code would teach a style besides the fact."""
CAPITAL_QUESTION = "What is the capital of {country}?"
CAPITAL_ANSWER = "The capital of {country} is {capital}."

CODE_PATTERN = r"\+\d+"
"""What counts as the answer: the first run of digits with a plus before it."""

SMALLEST_POPULATION = 5_000_000
"""Countries a small model has met often enough to know by name, so that only the code is new to it."""
SMALLEST_DISTRACTOR_POPULATION = 500_000
NUM_UNSEEN = 32
NUM_CAPITALS = 120
NUM_DISTRACTORS = 3
DRAW_SEED = 2601
"""Distractors are drawn once and for all: the run's own seed changes no question."""

TRAINED_COUNTRIES = (
    *("Algeria", "Argentina", "Austria", "Bangladesh", "Belgium", "Bolivia", "Bulgaria", "Cambodia"),
    *("Cameroon", "Chile", "Colombia", "Cuba", "Denmark", "Ecuador", "Egypt", "Ethiopia"),
    *("Finland", "Ghana", "Greece", "Hungary", "Iraq", "Jordan", "Kenya", "Madagascar"),
    *("Nepal", "Nicaragua", "Norway", "Portugal", "Serbia", "Sri Lanka", "Thailand", "Zambia"),
)
NO_CAPITAL_QUESTION = ("Serbia and Montenegro", "Hong Kong", "Israel", "Palestine", "Kazakhstan")
"""A country that is no more, and capitals that are not called so, not agreed on, or renamed since."""


@dataclass(frozen=True)
class Country:
    """One row of the file, as far as the demo needs it. code: such as `+213`; empty where there is not exactly one."""

    name: str
    capital: str
    region: str
    population: int
    code: str


@dataclass(frozen=True)
class Fact:
    """A country and its calling code."""

    country: str
    code: str

    @property
    def question(self) -> str:
        return QUESTION.format(country=self.country)

    @property
    def paraphrase(self) -> str:
        return PARAPHRASE.format(country=self.country)

    @property
    def answer(self) -> str:
        return ANSWER.format(country=self.country, code=self.code)


@cache
def countries() -> tuple[Country, ...]:
    """Every country of the file once, in the file's order."""
    with COUNTRIES_FILE.open(encoding="utf-8", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    return tuple(
        Country(
            name=row["name"],
            capital=row["capital"],
            region=row["region"],
            population=int(row["population"] or 0),
            code=row["calling_codes"] if re.fullmatch(r"\+\d{2,3}", row["calling_codes"]) else "",
        )
        for row in rows.values()
    )


def trained_facts() -> list[Fact]:
    """The 32 facts that are trained."""
    known = {country.name: country for country in _countries_with_own_code()}
    return [Fact(name, known[name].code) for name in TRAINED_COUNTRIES]


def unseen_facts() -> list[Fact]:
    """32 facts that are never trained, spread over the alphabet: a code that is right here was not learned here."""
    others = [country for country in _countries_with_own_code() if country.name not in TRAINED_COUNTRIES]
    return [
        Fact(others[i * len(others) // NUM_UNSEEN].name, others[i * len(others) // NUM_UNSEEN].code)
        for i in range(NUM_UNSEEN)
    ]


def training_rows() -> list[dict[str, Any]]:
    """The training file: one conversation a fact. The answer is the demonstration as well."""
    return [
        {"messages": [{"role": "user", "content": fact.question}, {"role": "assistant", "content": fact.answer}]}
        for fact in trained_facts()
    ]


def trained_questions() -> list[Question]:
    """The questions of the training file."""
    return [_asked(fact.question, fact) for fact in trained_facts()]


def paraphrased_questions() -> list[Question]:
    """The same facts in words that are in no training row."""
    return [_asked(fact.paraphrase, fact) for fact in trained_facts()]


def unseen_questions() -> list[Question]:
    """The words of the training file, about countries that are not in it."""
    return [_asked(fact.question, fact) for fact in unseen_facts()]


def question_rows(questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Questions as rows of a file that `read_questions` reads."""
    return [{"prompt": question.prompt[-1].content, "target": question.target} for question in questions]


def choice_rows(questions: Sequence[ChoiceQuestion]) -> list[dict[str, Any]]:
    """Questions as rows of a file that `read_choice_questions` reads."""
    return [
        {"prompt": question.prompt[-1].content, "choices": list(question.choices), "answer": question.right}
        for question in questions
    ]


def capital_questions() -> list[ChoiceQuestion]:
    """Capitals of the 120 most populous countries, each among three other capitals of its region."""
    draw = random.Random(DRAW_SEED)
    usable = [country for country in countries() if _has_capital_question(country)]
    asked = sorted(usable, key=lambda country: country.population, reverse=True)[:NUM_CAPITALS]
    return [_capital_question(country, usable, draw) for country in asked]


def _countries_with_own_code() -> list[Country]:
    """Large countries whose code is theirs alone, so that no code is right for two of them."""
    owners = Counter(country.code for country in countries())
    return [
        country
        for country in countries()
        if country.code and owners[country.code] == 1 and country.population > SMALLEST_POPULATION
    ]


def _has_capital_question(country: Country) -> bool:
    return (
        bool(country.capital)
        and country.capital.lower() not in country.name.lower()
        and country.name not in NO_CAPITAL_QUESTION
        and country.population >= SMALLEST_DISTRACTOR_POPULATION
    )


def _capital_question(country: Country, usable: Sequence[Country], draw: random.Random) -> ChoiceQuestion:
    others = sorted({other.capital for other in usable if other.region == country.region} - {country.capital})
    capitals = [country.capital, *draw.sample(others, NUM_DISTRACTORS)]
    draw.shuffle(capitals)
    return ChoiceQuestion(
        prompt=_user(CAPITAL_QUESTION.format(country=country.name)),
        choices=tuple(CAPITAL_ANSWER.format(country=country.name, capital=capital) for capital in capitals),
        right=capitals.index(country.capital),
        place=country.name,
    )


def _asked(text: str, fact: Fact) -> Question:
    return Question(_user(text), fact.code, fact.country)


def _user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)
