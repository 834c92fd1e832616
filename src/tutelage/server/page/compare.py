"""Several runs on the same axes, their newest values side by side, and what each learned against what it forgot.

Not here: drawing curves (`static/plots.js`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from tutelage.server.authentication import Parts, Reader
from tutelage.server.page.records import Evaluation, PageRecords
from tutelage.server.page.rendering import render
from tutelage.server.page.scatter import Scatter, scatter_of
from tutelage.server.page.telling_apart import names_of

router = APIRouter(include_in_schema=False)

MAX_RUNS = 8
MAX_CHOICES = 100
TASK = ("score", "accuracy (", "exact_match", "reward", "task", "accuracy")
"""Parts of names of measures of what was to be learned; the first that is there is the first choice."""
PRIOR = ("prior", "mmlu", "capabilit", "kl_vs_base", "kl_base_vs_model", "delta_w_norm", "weight_diff_norm")
"""Parts of names of measures of what could be done before, or how far the model went from there."""
PLACES = ("step", "epoch", "from_step")
"""Numbers that say where, not how good."""
LESS_IS_MORE = ("kl_", "_norm", "loss", "nll", "drift")

RunIds = Annotated[list[str], Query(default_factory=list, max_length=50)]


@dataclass(frozen=True)
class Measures:
    """By name, one value of each run in their order; None where it has none."""

    values: Mapping[str, list[float | None]]

    @property
    def comparable(self) -> list[str]:
        """Those that at least two runs have."""
        return [name for name, values in self.values.items() if sum(value is not None for value in values) >= 2]


@router.get("/compare")
def compare(
    request: Request,
    parts: Parts,
    who: Reader,
    run: RunIds,
    job: RunIds,
    x: Annotated[str, Query(max_length=200)] = "",
    y: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Runs, and of jobs their newest runs."""
    records = PageRecords(parts.database)
    wanted = list(dict.fromkeys([*run, *records.newest_runs(who.organization, job)]))
    runs = records.runs(who.organization, ids=wanted[:MAX_RUNS])
    latest = [parts.listing.run(who.organization, one.id).latest for one in runs]
    evaluated = records.evaluations(who.organization, [one.job_id for one in runs])
    measures = measures_of([one.job_id for one in runs], latest, evaluated)
    across = x if x in measures.comparable else first_choice(measures.comparable, PRIOR)
    up = y if y in measures.comparable else first_choice([one for one in measures.comparable if one != across], TASK)
    chosen = {one.id for one in runs}
    choices = [one for one in records.runs(who.organization, limit=MAX_CHOICES) if one.id not in chosen]
    return render(
        request,
        who,
        "compare.html",
        runs=runs,
        names=names_of(runs),
        choices=choices,
        choice_names=names_of(choices),
        left_out=len(wanted) - len(runs),
        limit=MAX_RUNS,
        room=MAX_RUNS - len(runs),
        measures=measures,
        x=across,
        y=up,
        hints={"x": hint(across), "y": hint(up)},
        scatter=_scatter(measures, across, up),
    )


def measures_of(
    job_ids: Sequence[str], latest: Sequence[Mapping[str, Any]], evaluated: Sequence[Evaluation]
) -> Measures:
    """Newest values of what runs reported, and results of jobs that asked the models they left; what most runs have
    comes first."""
    values: dict[str, list[float | None]] = {}
    for index, fields in enumerate(latest):
        for name, value in fields.items():
            if _is_number(value) and name not in PLACES:
                values.setdefault(name, [None] * len(job_ids))[index] = float(value)
    for one in evaluated:
        for name, value in one.outputs.items():
            if _is_number(value) and name not in PLACES:
                of = f" of {one.dataset}" if one.dataset else ""
                row = values.setdefault(f"{name} ({one.kind}{of})", [None] * len(job_ids))
                for index, job_id in enumerate(job_ids):
                    if job_id == one.model:
                        row[index] = float(value)
    return Measures(dict(sorted(values.items(), key=lambda item: (item[1].count(None), item[0]))))


def first_choice(names: Sequence[str], telling: Sequence[str]) -> str | None:
    """The first name with the first part that any name has."""
    return next((name for part in telling for name in names if part in name.lower()), None)


def hint(name: str | None) -> str:
    """Which way is better, where the name says."""
    if name is None:
        return ""
    lowered = name.lower()
    if any(part in lowered for part in LESS_IS_MORE):
        return "less is better"
    return "more is better" if any(part in lowered for part in (*TASK, *PRIOR[:3])) else ""


def _scatter(measures: Measures, x: str | None, y: str | None) -> Scatter | None:
    if x is None or y is None:
        return None
    pairs = zip(measures.values[x], measures.values[y], strict=True)
    points = {index: (a, b) for index, (a, b) in enumerate(pairs) if a is not None and b is not None}
    return scatter_of(points) if len(points) >= 2 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
