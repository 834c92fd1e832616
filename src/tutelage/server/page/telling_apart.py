"""What tells runs apart on a page: short names, from the params in which they differ. Not here: looking runs up."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.server.page.formats import number
from tutelage.server.page.records import RunChoice

MAX_DIFFERENCES = 3
MORE_TELLING = ("learning_rate", "epochs", "max_steps", "r", "beta", "seed")
"""Named first, in this order."""
LESS_TELLING = ("training_file", "test_file", "job_id_suffix", "meta", "output_dir")
"""Named only where nothing else differs."""
MAX_VALUE = 32


def names_of(runs: Sequence[RunChoice]) -> dict[str, str]:
    """By the id of each run, its objective or kind; where that is not enough, with what it has that others have not,
    such as `sdft learning_rate=0.0002`."""
    names = {run.id: what(run) for run in runs}
    for name, count in Counter(names.values()).items():
        alike = [run for run in runs if what(run) == name]
        if count == 1:
            continue
        for run in alike:
            params = ((one, run.params.get(one)) for one in _differing([other.params for other in alike]))
            told = [f"{one}={_short(value)}" for one, value in params if value is not None][:MAX_DIFFERENCES]
            names[run.id] = " ".join([name, *told])
    taken = Counter(names.values())
    return {run_id: name if taken[name] == 1 else f"{name} {run_id[4:10]}" for run_id, name in names.items()}


def what(run: RunChoice) -> str:
    """The objective, of a training run; the kind of other jobs."""
    loss = run.params.get("loss")
    return loss if isinstance(loss, str) else run.kind


def _differing(params: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of options that runs have not in common, those that tell little only where there are no others."""
    names = sorted({name for one in params for name in one} - {"loss"}, key=_rank)
    differing = [name for name in names if any(one.get(name) != params[0].get(name) for one in params[1:])]
    return [name for name in differing if name not in LESS_TELLING] or differing


def _rank(name: str) -> tuple[int, str]:
    return (MORE_TELLING.index(name), "") if name in MORE_TELLING else (len(MORE_TELLING), name)


def _short(value: Any) -> str:
    text = number(value)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 1]}…"
