"""What the numbers say, in sentences that hold whichever way they fall. Pure: results in, text out.

Differences whose interval includes zero are said to be within noise. Not here: the page (`report.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.evaluation import Interval, Measure, Role, Unit
from tutelage.experiments.results import ExperimentResults, ModelResult, Score
from tutelage.experiments.specification import KL_VS_BASE

FEW_SEEDS = 10
"""Below this the report says what a bootstrap over so few seeds is worth."""


@dataclass(frozen=True)
class Findings:
    """Sentences by what they are about."""

    learned: list[str]
    kept: list[str]
    caveats: list[str]

    @property
    def all(self) -> list[str]:
        return [*self.learned, *self.kept, *self.caveats]


def findings(results: ExperimentResults) -> Findings:
    """Who learned, who drifted, what is within noise."""
    task = _measures(results, Role.TASK)
    learned = [(_learned if measure.higher_is_better else _answers)(results, measure) for measure in task]
    learned += _dft_remark(results)
    learned += [_check(results, measure) for measure in _measures(results, Role.CHECK)]
    learned += [_answers(results, measure) for measure in _measures(results, Role.FREEFORM)]
    kept = [_left_of(results, measure) for measure in task if results.stages and measure.higher_is_better]
    kept += [_drift(results), *(_kept(results, measure) for measure in _measures(results, Role.PRIOR))]
    return Findings(learned, [sentence for sentence in kept if sentence], [*results.notes, *_caveats(results)])


def value_text(score: Score, measure: Measure) -> str:
    """`31 of 32` where items are right or wrong (over several seeds the mean count), else a number."""
    if measure.unit is Unit.SHARE and score.counts:
        items, seeds = len(score.valid), len(score.items)
        return f"{score.mean * items:.{0 if seeds == 1 else 1}f} of {items}"
    return number_text(score.mean, measure)


def number_text(value: float, measure: Measure) -> str:
    """As many digits as the unit bears. A KL a rounding error below zero is zero."""
    digits = {Unit.KL: 3, Unit.POINTS: 1}.get(measure.unit, 2)
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def interval_text(interval: Interval, measure: Measure) -> str:
    """`0.91 to 1.00`."""
    return f"{number_text(interval.low, measure)} to {number_text(interval.high, measure)}"


def level_text(interval: Interval) -> str:
    """`95 %`."""
    return f"{interval.level * 100:.0f} %"


def joined(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


# --- what was learned ---------------------------------------------------------------------------------------------


def _learned(results: ExperimentResults, measure: Measure) -> str:
    runs = sorted(results.runs, key=lambda run: -run.scores[measure.name].mean)
    best = [run for run in runs if run.scores[measure.name].mean == runs[0].scores[measure.name].mean]
    base = results.base.scores[measure.name]
    text = f"{_cap(measure.title)}: base {value_text(base, measure)}; "
    if best[0].scores[measure.name].mean <= base.mean:
        shown = joined([f"{run.name} {value_text(run.scores[measure.name], measure)}" for run in runs])
        return f"{text}no run is above it ({shown})."
    text += (
        f"{joined([run.name for run in best])} learned most with {value_text(best[0].scores[measure.name], measure)}"
    )
    text += " each" if len(best) > 1 else ""
    text += _noise_of_gain(best[0].scores[measure.name].difference(base), measure)
    rest = [_compared(run, best[0], measure) for run in runs if run not in best]
    return f"{text}; {joined(rest)}." if rest else f"{text}."


def _noise_of_gain(gain: Interval, measure: Measure) -> str:
    return "" if gain.excludes_zero else f" (the gain over base is within noise: {interval_text(gain, measure)})"


def _compared(run: ModelResult, best: ModelResult, measure: Measure) -> str:
    score = run.scores[measure.name]
    difference = score.difference(best.scores[measure.name])
    text = f"{run.name} {value_text(score, measure)}"
    return text if difference.excludes_zero else f"{text} (within noise of {best.name})"


def _dft_remark(results: ExperimentResults) -> list[str]:
    """Why dft is behind sft, or that it is not, where they differ in nothing else."""
    task = next((measure for measure in _measures(results, Role.TASK) if measure.higher_is_better), None)
    pairs = [
        (dft, sft)
        for dft in results.runs
        for sft in results.runs
        if (dft.objective, sft.objective) == ("dft", "sft") and _differ_in_loss_alone(dft, sft)
    ]
    if task is None or not pairs:
        return []
    dft, sft = pairs[0]
    difference = dft.scores[task.name].difference(sft.scores[task.name])
    reason = (
        "The dft objective weights a token by the model's own probability of it, so what the model finds improbable "
        "hardly gets a gradient"
    )
    if difference.excludes_zero and difference.mean < 0:
        return [f"{reason}: in {task.title} {dft.name} trails {sft.name}, which differs in nothing else, beyond noise."]
    return [f"{reason}; yet in {task.title} {dft.name} is not behind {sft.name} beyond noise."]


def _differ_in_loss_alone(run: ModelResult, other: ModelResult) -> bool:
    ignored = ("loss", "output_dir")
    first, second = ({k: v for k, v in one.config.items() if k not in ignored} for one in (run, other))
    return first == second


def _answers(results: ExperimentResults, measure: Measure) -> str:
    """What judges made of open answers: neither better nor worse than the base, but more or less of it."""
    base = results.base.scores[measure.name]
    parts = [_against_base(run, base, measure) for run in results.runs]
    return f"{_cap(measure.title)}, as judged: base {value_text(base, measure)}; {joined(parts)}."


def _against_base(run: ModelResult, base: Score, measure: Measure) -> str:
    score = run.scores[measure.name]
    text = f"{run.name} {value_text(score, measure)}"
    return text if score.difference(base).excludes_zero else f"{text} (within noise of base)"


def _check(results: ExperimentResults, measure: Measure) -> str:
    base = results.base.scores[measure.name]
    moved = [run for run in results.runs if run.scores[measure.name].difference(base).excludes_zero]
    shown = joined([f"{run.name} {value_text(run.scores[measure.name], measure)}" for run in results.runs])
    text = f"{_cap(measure.title)} (a check, never trained): base {value_text(base, measure)}, {shown}; "
    if not moved:
        return f"{text}no run differs from base beyond noise, as it should be."
    return f"{text}{joined([run.name for run in moved])} differ{'s' * (len(moved) == 1)} from base beyond noise."


# --- what was kept ------------------------------------------------------------------------------------------------


def _left_of(results: ExperimentResults, measure: Measure) -> str:
    """How much of what a run knew best after one of its stages it still knows after the last."""
    parts: list[str] = []
    for run in results.runs:
        scores = [
            (stage, after[measure.name]) for stage in results.stages if measure.name in (after := run.after(stage))
        ]
        best_after, best = max(scores, key=lambda scored: scored[1].mean)
        last = run.scores[measure.name]
        now = f"{value_text(last, measure)} at the end"
        if last.mean == best.mean:
            parts.append(f"{run.name} {now}, its most")
        else:
            sure = bool(last.valid & best.valid) and last.difference(best).excludes_zero
            noise = "" if sure else " (within noise)"
            parts.append(f"{run.name} {value_text(best, measure)} after {best_after} and {now}{noise}")
    return f"{_cap(measure.title)} over the stages: {'; '.join(parts)}."


def _drift(results: ExperimentResults) -> str:
    measure = KL_VS_BASE
    runs = sorted(
        (run for run in results.runs if measure.name in run.scores), key=lambda run: run.scores[measure.name].mean
    )
    if not runs:
        return ""
    least, scores = runs[0], {run.name: run.scores[measure.name] for run in runs}
    shown = joined([f"{run.name} {value_text(scores[run.name], measure)}" for run in runs])
    text = f"{measure.title} on everyday prompts, in {measure.unit.value}: {shown}"
    if len(runs) == 1:
        return f"{text}."
    text += f". Least drifted {least.name}"
    parts: list[str] = []
    for run in runs[1:]:
        difference = scores[run.name].difference(scores[least.name])
        noise = "" if difference.excludes_zero else " (within noise)"
        if scores[least.name].mean > 0 and scores[run.name].mean > 0:
            ratio = scores[least.name].mean / scores[run.name].mean
            parts.append(f"{ratio:.2f} times the KL of {run.name}{noise}")
    return f"{text}: {joined(parts)}." if parts else f"{text}."


def _kept(results: ExperimentResults, measure: Measure) -> str:
    base = results.base.scores[measure.name]
    inside: list[str] = []
    outside: list[str] = []
    for run in results.runs:
        score = run.scores[measure.name]
        difference = score.difference(base)
        if not difference.excludes_zero:
            inside.append(f"{run.name} ({value_text(score, measure)})")
        else:
            word = "above" if difference.mean > 0 else "below"
            outside.append(
                f"{run.name} is {word} it ({value_text(score, measure)}; difference "
                f"{number_text(difference.mean, measure)}, {interval_text(difference, measure)})"
            )
    parts = [f"{joined(inside)} {'is' if len(inside) == 1 else 'are'} within noise of that"] if inside else []
    unit = "" if measure.unit is Unit.SHARE else f" {measure.unit.value}"
    return f"{_cap(measure.title)}: base {value_text(base, measure)}{unit}; {'; '.join([*parts, *outside])}."


# --- how sure -----------------------------------------------------------------------------------------------------


def _caveats(results: ExperimentResults) -> list[str]:
    level = level_text(results.base.scores[KL_VS_BASE.name].interval)
    over = (
        "over the items of one seed: what another seed would give is not in them"
        if len(results.seeds) == 1
        else f"over items and {_seeds_text(results)}"
    )
    caveats = [
        f"Intervals are {level} bootstrap intervals {over}. A difference is called within noise where the "
        "interval of the paired difference includes zero."
    ]
    if 1 < len(results.seeds) < FEW_SEEDS:
        caveats.append(
            f"{len(results.seeds)} seeds say little of how far seeds differ: the bootstrap draws among these few, so "
            "its intervals are too narrow where runs differ more by seed than by item."
        )
    pinned = {
        len(score.valid)
        for model in results.models
        for measure in results.measures
        if measure.unit is Unit.SHARE
        and (score := model.scores.get(measure.name))
        and len({value for row in score.items for value in row}) == 1
    }
    if pinned:
        items = min(pinned)
        bound = 1.0 - 0.05 ** (1.0 / items)
        caveats.append(
            "Where all items have the same score the bootstrap's interval has no width. With "
            f"{items} items, that still admits a true rate up to {bound * 100:.0f} % away."
        )
    caveats += [
        f"{model.name} with seed {seed.seed} failed and is in no table or figure: {seed.error}"
        for model, seed in results.failed
    ]
    return caveats


def _seeds_text(results: ExperimentResults) -> str:
    """`3 seeds`; where some failed, of how many seeds each run is."""
    counts = {run.name: len(run.finished) for run in results.runs}
    if len(set(counts.values())) == 1:
        return _counted(next(iter(counts.values())))
    return f"the seeds that finished ({', '.join(f'{name}: {_counted(count)}' for name, count in counts.items())})"


def _counted(seeds: int) -> str:
    return f"{seeds} seed{'s' * (seeds != 1)}"


def _measures(results: ExperimentResults, role: Role) -> list[Measure]:
    """Those of which the base model and every run have a value for the same items, one or more."""
    models = (results.base, *results.runs)
    return [
        measure
        for measure in results.of_role(role)
        if all(measure.name in model.scores for model in models)
        and frozenset.intersection(*(model.scores[measure.name].valid for model in models))
    ]


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]
