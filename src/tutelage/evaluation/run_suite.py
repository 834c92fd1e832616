"""Asking one model everything in a suite; what is known already is not asked again. Nothing is printed here."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tutelage.data.chat_template import ChatTemplate
from tutelage.evaluation.measures import Evaluation, Outcome
from tutelage.evaluation.results import OutcomeFolder
from tutelage.models import LoadedModel

Load = Callable[[], tuple[LoadedModel, ChatTemplate]]
"""Gives the model, which may take long, and its template."""


@dataclass(frozen=True)
class SuiteOutcome:
    """outcomes: evaluation name to outcome, in the suite's order. kept: names of those that were there already."""

    outcomes: dict[str, Outcome]
    kept: tuple[str, ...]


def evaluate_suite(
    load: Load,
    evaluations: Sequence[Evaluation],
    folder: OutcomeFolder,
    say: Callable[[str], None],
    *,
    again: bool = False,
) -> SuiteOutcome:
    """The outcome of every evaluation, each written to the folder as soon as it is there.

    load: called once, and only if something has to be asked. say: told what goes on, a line at a time. again: ask also
    what the folder has an outcome of. Whatever is asked besides the model is checked before it is loaded. Raises
    TutelageError.
    """
    kept = {} if again else {one.name: outcome for one in evaluations if (outcome := folder.read(one)) is not None}
    missing = [evaluation for evaluation in evaluations if evaluation.name not in kept]
    for evaluation in missing:
        evaluation.check()
    asked: dict[str, Outcome] = {}
    if missing:
        loaded, template = load()
        for evaluation in missing:
            say(f"{evaluation.title} …")
            started = time.perf_counter()
            outcome = evaluation.run(loaded, template)
            asked[evaluation.name] = replace(outcome, seconds=time.perf_counter() - started)
            folder.write(evaluation, asked[evaluation.name])
    outcomes = kept | asked
    return SuiteOutcome({one.name: outcomes[one.name] for one in evaluations}, tuple(kept))
