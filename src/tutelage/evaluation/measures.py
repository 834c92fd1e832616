"""What an evaluation measures, and what comes of running one. Not here: the kinds of evaluation themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from tutelage.data.chat_template import ChatTemplate
from tutelage.models import LoadedModel


class Role(str, Enum):
    """What a measure tells about a run."""

    TASK = "task"  # what the run is to learn
    CHECK = "check"  # what it can not have learned from its data
    PRIOR = "prior"  # what the base model could do
    FREEFORM = "freeform"  # how it answers open questions
    DRIFT = "drift"  # how far its answers have moved from the base model's


class Unit(str, Enum):
    """How a value reads."""

    SHARE = "share of items"
    SCORE = "score from 0 to 1"
    POINTS = "points of 100"
    LOG_PROB = "nats per answer"
    KL = "nats per token"
    OTHER = "its own unit"


@dataclass(frozen=True)
class Measure:
    """One column of the tables. name: letters, digits, `_`, `.`, `-`. meaning: for the reader of the report."""

    name: str
    title: str
    role: Role
    unit: Unit
    meaning: str = ""
    higher_is_better: bool | None = True
    """None where more is neither better nor worse."""


@dataclass(frozen=True)
class Outcome:
    """What one evaluation of one model gave.

    scores: measure name to one value an item, in an order that is the same for every model; NaN for an item without a
    value. rows: one an item or answer, plain JSON, with `prompt` (messages), `answer`, `score` and mostly `target`.
    failed: what had to be left out, such as judgements, with how often; never part of a score. is_complete: False where
    asking again may give what is missing, such as a judge that did not answer. seconds: how long it took to ask.
    """

    measures: tuple[Measure, ...]
    scores: Mapping[str, tuple[float, ...]]
    rows: list[dict[str, Any]]
    failed: Mapping[str, int] = field(default_factory=dict)
    is_complete: bool = True
    seconds: float = 0.0


class Named(Protocol):
    """What an outcome is kept under.

    name: unique in its suite, fit for a file name. identity: plain JSON, all that the outcome depends on besides the
    model (options, hashes of files), so that an outcome can be kept and used again.
    """

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def role(self) -> Role: ...

    @property
    def identity(self) -> Mapping[str, Any]: ...


class Evaluation(Named, Protocol):
    """Something every model of a comparison is asked, alike."""

    def check(self) -> None:
        """Whether all that is asked besides the model is there, such as a judge. Raises ConfigError."""
        ...

    def run(self, loaded: LoadedModel, template: ChatTemplate) -> Outcome:
        """Ask the model; it is as before afterwards. Raises TutelageError."""
        ...
