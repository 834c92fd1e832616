"""Open questions from YAML: how they are put, how often, and what judges are asked of the answers.

Not here: asking the model and the judges (`freeform.py`).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tutelage.config.faults import checked
from tutelage.config.yaml_files import read_yaml
from tutelage.data.messages import Message
from tutelage.data.placeholders import fill_placeholders
from tutelage.errors import ConfigError, nearest

Positive = Annotated[int, Field(ge=1)]

PROMPT_NAME = re.compile(r"[A-Za-z0-9_-]+")
FILE_KEYS = ("defaults", "questions")

PLACE = re.compile(r"(?<![\\\w}])\{(\s*[A-Za-z_]{3,}\s*)\}")
"""What looks like a place for a text; other braces, such as those of JSON and of formulas, are the prompt's own."""
PLACES = ("question", "answer")


class JudgePrompt(BaseModel):
    """What a judge is asked about an answer: a number from 0 to 100, or one of `labels`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    """`{answer}` must be in it, `{question}` may."""
    labels: tuple[str, ...] | None = None
    """Unset, a number is asked for."""
    higher_is_better: bool | None = True
    """Of numbers; labels are neither."""

    @field_validator("prompt")
    @classmethod
    def _has_placeholder(cls, prompt: str) -> str:
        if "{answer}" not in prompt:
            raise ValueError("the judge has to see the answer; put {answer} where it is to stand")
        written = [name for name in PLACE.findall(prompt) if name not in PLACES]
        if unknown := [name for name in written if nearest(name.strip().lower(), PLACES)]:  # others are its own
            raise ValueError(f"{{{unknown[0]}}} stands for nothing; write {{question}} and {{answer}}, without spaces")
        return prompt

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if labels is not None and len({label_name(label) for label in labels if label.strip()}) < max(2, len(labels)):
            raise ValueError("give two labels or more that differ in letters or digits")
        return labels

    @model_validator(mode="after")
    def _labels_have_no_order(self) -> "JudgePrompt":
        if self.labels is not None and self.model_fields_set & {"higher_is_better"}:
            raise ValueError("'higher_is_better' is for numbers; leave it out beside 'labels'")
        return self

    def filled(self, question: str, answer: str) -> str:
        """What the judge reads."""
        return fill_placeholders(self.prompt, {"question": question, "answer": answer})


class FreeformQuestion(BaseModel):
    """One question, put in one or several ways, answered several times."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)

    id: str
    paraphrases: tuple[str, ...]
    samples_per_paraphrase: Positive = 1
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """0 is greedy."""
    system: str | None = None
    max_new_tokens: Positive = 256
    judge_prompts: dict[str, JudgePrompt]

    @field_validator("id")
    @classmethod
    def _id_is_written(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("give a short name")
        return value

    @field_validator("paraphrases", mode="before")
    @classmethod
    def _is_a_list(cls, paraphrases: Any) -> Any:
        if not isinstance(paraphrases, list | tuple):
            raise ValueError("give a list of texts, be it of one")
        return paraphrases

    @field_validator("paraphrases")
    @classmethod
    def _paraphrases_are_written(cls, paraphrases: tuple[str, ...]) -> tuple[str, ...]:
        if not paraphrases or not all(text.strip() for text in paraphrases):
            raise ValueError("give at least one text, and none that is empty")
        if len(set(paraphrases)) < len(paraphrases):
            raise ValueError("one stands there twice; put the question in other words, or raise samples_per_paraphrase")
        return paraphrases

    @field_validator("judge_prompts")
    @classmethod
    def _prompts_have_names(cls, prompts: dict[str, JudgePrompt]) -> dict[str, JudgePrompt]:
        if not prompts:
            raise ValueError("give at least one judge prompt")
        if wrong := [name for name in prompts if not PROMPT_NAME.fullmatch(name)]:
            raise ValueError(f"name '{wrong[0]}' anew, with letters, digits, '_' and '-'")
        return prompts

    @model_validator(mode="after")
    def _samples_differ(self) -> "FreeformQuestion":
        if self.temperature == 0 and self.samples_per_paraphrase > 1:
            raise ValueError(
                f"samples_per_paraphrase is {self.samples_per_paraphrase}, but at temperature 0 all samples are the "
                "same; set it to 1, or raise the temperature"
            )
        return self

    def messages(self, paraphrase: int) -> tuple[Message, ...]:
        """What the model is asked."""
        asked = Message("user", self.paraphrases[paraphrase])
        return (asked,) if self.system is None else (Message("system", self.system), asked)


def label_name(label: str) -> str:
    """The label as part of a measure's name."""
    return re.sub(r"[^\w-]+", "_", label.strip().casefold())


def read_freeform_questions(path: Path) -> list[FreeformQuestion]:
    """A list of questions, or `{defaults: {…}, questions: […]}`; what a question says itself replaces a default.

    Raises ConfigError, which names file, id and key.
    """
    defaults, entries = _parts(path, read_yaml(path, "question"))
    questions = [_question(entry, defaults, f"{path}", number) for number, entry in enumerate(entries)]
    repeated = [name for name, count in Counter(question.id for question in questions).items() if count > 1]
    if repeated:
        raise ConfigError(f"{path}: {repeated[0]}: two questions have this id; give each its own")
    _require_one_meaning(path, questions)
    return questions


def _parts(path: Path, content: Any) -> tuple[dict[str, Any], Sequence[Any]]:
    """Defaults and questions."""
    if isinstance(content, list):
        defaults, entries = {}, cast("list[Any]", content)
    elif isinstance(content, dict):
        options = cast("dict[Any, Any]", content)
        if unknown := [str(key) for key in options if key not in FILE_KEYS]:
            raise ConfigError(
                f"{path}: '{unknown[0]}' is not known here{nearest(unknown[0], FILE_KEYS)}; write a list of "
                "questions, or 'defaults' and 'questions'"
            )
        defaults, entries = options.get("defaults") or {}, options.get("questions")
    else:
        defaults, entries = {}, None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: holds no questions; write a list of them, each with 'id' and 'paraphrases'")
    if not isinstance(defaults, dict):
        raise ConfigError(f"{path}: defaults: {defaults!r:.60} does not fit; write options such as 'temperature: 1.0'")
    if own := {"id", "paraphrases"} & defaults.keys():
        raise ConfigError(f"{path}: defaults: '{min(own)}' is each question's own; take it out")
    return defaults, entries


def _question(entry: Any, defaults: Mapping[str, Any], path: str, number: int) -> FreeformQuestion:
    if not isinstance(entry, dict):
        raise ConfigError(f"{path}: [{number}]: {entry!r:.60} is no question; write 'id', 'paraphrases' and more")
    options = {**defaults, **cast("dict[str, Any]", entry)}
    place = f"{path}: {options.get('id', f'[{number}]')}"
    prompts = options.get("judge_prompts")
    if isinstance(prompts, dict):
        options["judge_prompts"] = {
            str(name): checked(JudgePrompt, _prompt_options(prompt, place, name), f"{place}: judge_prompts.{name}")
            for name, prompt in cast("dict[Any, Any]", prompts).items()
        }
    return checked(FreeformQuestion, options, place)


def _prompt_options(prompt: Any, place: str, name: Any) -> dict[str, Any]:
    """Of a text too, which is the prompt alone."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if not isinstance(prompt, dict):
        raise ConfigError(
            f"{place}: judge_prompts.{name}: {prompt!r:.60} does not fit; write a text, or 'prompt' and 'labels'"
        )
    return cast("dict[str, Any]", prompt)


def _require_one_meaning(path: Path, questions: Sequence[FreeformQuestion]) -> None:
    """A judge prompt of one name is one measure: its wording may differ between questions, its scale may not."""
    first: dict[str, tuple[str, JudgePrompt]] = {}
    for question in questions:
        for name, prompt in question.judge_prompts.items():
            other, known = first.setdefault(name, (question.id, prompt))
            if (prompt.labels, prompt.higher_is_better) != (known.labels, known.higher_is_better):
                raise ConfigError(
                    f"{path}: {question.id}: judge_prompts.{name}: labels or higher_is_better are not those of "
                    f"'{name}' in {other}; make them the same, or name one of them anew"
                )
