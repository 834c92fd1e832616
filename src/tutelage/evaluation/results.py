"""Result files of an evaluation: every prompt, answer and score, and the outcome to be used again.

Per model a folder; per evaluation `<name>.jsonl` with one JSON object an answer, and `<name>.json` with the scores.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from tutelage.evaluation.measures import Measure, Named, Outcome, Role, Unit
from tutelage.files import JsonLinesFile, make_folder, write_json, write_json_lines


class ResultItem(Protocol):
    """An item that knows its row."""

    def row(self) -> dict[str, Any]: ...


def write_items(path: Path, items: Sequence[ResultItem]) -> None:
    """Write the items' rows to `path`, in place of what was there; the file appears when it is complete.

    Raises OutputError where the disk refuses.
    """
    make_folder(path.parent, "folder")
    write_json_lines(path, (item.row() for item in items))


@dataclass(frozen=True)
class OutcomeFolder:
    """The outcomes of one model's evaluations. model: what the model is, as a hash."""

    path: Path
    model: str

    def write(self, evaluation: Named, outcome: Outcome) -> None:
        """Both files; the one with the scores last, so that it vouches for the other. Raises OutputError."""
        make_folder(self.path, "output folder")
        (self.path / f"{evaluation.name}.json").unlink(missing_ok=True)  # it vouches for the rows of old
        write_json_lines(self.path / f"{evaluation.name}.jsonl", outcome.rows)
        write_json(
            self.path / f"{evaluation.name}.json",
            {
                "evaluation": evaluation.name,
                "model": self.model,
                "identity": dict(evaluation.identity),
                "complete": outcome.is_complete,
                "seconds": outcome.seconds,
                "means": {name: _mean(values) for name, values in outcome.scores.items()},
                "failed": dict(outcome.failed),
                "measures": [asdict(measure) for measure in outcome.measures],
                "scores": {name: [_or_none(value) for value in values] for name, values in outcome.scores.items()},
            },
        )

    def read(self, evaluation: Named) -> Outcome | None:
        """The outcome kept here, if it is complete and of this model, this evaluation and the same data; else None."""
        try:
            kept: Any = json.loads((self.path / f"{evaluation.name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        same = json.loads(json.dumps(dict(evaluation.identity)))
        if not isinstance(kept, dict) or (kept.get("model"), kept.get("identity")) != (self.model, same):
            return None
        if not kept.get("complete"):
            return None
        if not (self.path / f"{evaluation.name}.jsonl").is_file():
            return None
        return Outcome(
            measures=tuple(read_measure(values) for values in kept["measures"]),
            scores={
                name: tuple(math.nan if value is None else float(value) for value in values)
                for name, values in kept["scores"].items()
            },
            rows=list(JsonLinesFile(self.path / f"{evaluation.name}.jsonl").rows()),
            failed=kept["failed"],
            seconds=kept["seconds"],
        )


def read_measure(values: dict[str, Any]) -> Measure:
    """A measure from what `asdict` made of it."""
    return Measure(**{**values, "role": Role(values["role"]), "unit": Unit(values["unit"])})


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
