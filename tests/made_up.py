"""Made-up results of an experiment, for tests of tables, sentences, figures and the page."""

from dataclasses import replace
from functools import cache
from typing import Any

from tutelage.evaluation import Measure, Role, Unit
from tutelage.experiments import ExperimentResults
from tutelage.experiments.results import ModelResult, Score, SeedResult, Status
from tutelage.experiments.specification import BASE, KL_BASE_VS_MODEL, KL_VS_BASE

TRAINED = Measure("trained", "trained question", Role.TASK, Unit.SHARE, "The trained questions.")
PARAPHRASE = Measure("paraphrase", "paraphrase", Role.TASK, Unit.SHARE)
UNSEEN = Measure("unseen", "unseen country", Role.CHECK, Unit.SHARE, higher_is_better=None)
CAPITALS = Measure("capitals", "capitals", Role.PRIOR, Unit.SHARE)
CAPITALS_LOG_PROB = Measure("capitals_log_prob", "log-prob of the right capital", Role.PRIOR, Unit.LOG_PROB)
MEASURES = (TRAINED, PARAPHRASE, UNSEEN, CAPITALS, CAPITALS_LOG_PROB, KL_VS_BASE, KL_BASE_VS_MODEL)

SEED = 7


def right(count: int, items: int = 32) -> Score:
    """The first `count` of the items are right."""
    return Score.of([1.0] * count + [0.0] * (items - count))


def spread(mean: float, items: int = 16) -> Score:
    """Values at half and one and a half times the mean by turns."""
    return Score.of([mean * (0.5 + index % 2) for index in range(items)])


@cache
def made_up_model(name: str, objective: str | None, trained: int, paraphrase: int, kl: float) -> ModelResult:
    """One model with everything a report shows; `unseen` is 0 and the capitals are the same for all."""
    answers: dict[str, list[dict[str, Any]]] = {
        "trained": [
            {
                "prompt": [{"role": "user", "content": f"question {index}"}],
                "answer": f"{name} says <b>+{index}</b> & more",
                "target": f"+{index}",
                "score": float(index < trained),
            }
            for index in range(32)
        ]
    }
    curve = [(step, kl * step) for step in range(3)]
    scores = {
        "trained": right(trained),
        "paraphrase": right(paraphrase),
        "unseen": right(0),
        "capitals": right(108, 120),
        "capitals_log_prob": spread(-4.0, 120),
        "kl_vs_base": spread(kl),
        "kl_base_vs_model": spread(2 * kl),
    }
    seed = SeedResult(
        SEED,
        scores={name: score.items[0] for name, score in scores.items()},
        curves={"loss": curve, "nll": curve, "grad_norm": curve, "delta_w_norm": curve, "kl_vs_base": curve}
        if objective
        else {},
        config={"loss": objective, "learning_rate": 0.001 * trained, "r": 16} if objective else {},
        run_path=f"demo/runs/{name}" if objective else None,
        training_seconds=90.0,
        evaluation_seconds=20.0,
    )
    return ModelResult(name, objective, (seed,), answers)


def made_up_base() -> ModelResult:
    return made_up_model(BASE, None, 0, 0, 0.0)


def made_up_failure() -> ModelResult:
    failed = SeedResult(SEED, Status.FAILED, "RuntimeError: no <memory> left", config={"loss": "dft"})
    return ModelResult("dft", "dft", (failed,))


def made_up_seeds(name: str, objective: str, *trained: int) -> ModelResult:
    """A run with as many seeds as there are counts of right answers; KL 0.1, 0.2, …"""
    parts = [made_up_model(name, objective, count, count, 0.1 * (i + 1)) for i, count in enumerate(trained)]
    seeds = tuple(replace(part.seeds[0], seed=i + 1) for i, part in enumerate(parts))
    return ModelResult(name, objective, seeds, parts[0].answers)


def made_up_results(*runs: ModelResult) -> ExperimentResults:
    """Base and the runs; without any: sft 32 and 31 of 32 at KL 0.3, dft 14 and 12 at 0.25, sdft 31 and 20 at 0.1."""
    shown = runs or (
        made_up_model("sft", "sft", 32, 31, 0.3),
        made_up_model("dft", "dft", 14, 12, 0.25),
        made_up_model("sdft", "sdft", 31, 20, 0.1),
    )
    return ExperimentResults(
        name="made-up",
        title="Made up <for tests>",
        model="smollm2",
        seeds=tuple(dict.fromkeys(seed.seed for run in shown for seed in run.seeds)),
        created="2026-01-01T00:00:00+00:00",
        measures=MEASURES,
        models=(made_up_base(), *shown),
        data={"train.jsonl": "0a" * 32},
        environment={"versions": {"torch": "2.13.0"}},
        introduction="An introduction.",
        notes=("A note.",),
        sources=("A source.",),
    )
