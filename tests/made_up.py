"""Made-up results of an experiment, for tests of tables, sentences, figures and the page."""

from functools import cache
from typing import Any

from tutelage.experiments import ExperimentResults
from tutelage.experiments.demo import CAPITALS, CAPITALS_LOG_PROB, PARAPHRASE, TRAINED, UNSEEN
from tutelage.experiments.results import ModelResult, Score, Status
from tutelage.experiments.specification import BASE, KL_BASE_VS_MODEL, KL_VS_BASE

MEASURES = (TRAINED, PARAPHRASE, UNSEEN, CAPITALS, CAPITALS_LOG_PROB, KL_VS_BASE, KL_BASE_VS_MODEL)


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
    return ModelResult(
        name,
        objective,
        scores={
            "trained": right(trained),
            "paraphrase": right(paraphrase),
            "unseen": right(0),
            "capitals": right(108, 120),
            "capitals_log_prob": spread(-4.0, 120),
            "kl_vs_base": spread(kl),
            "kl_base_vs_model": spread(2 * kl),
        },
        answers=answers,
        curves={"loss": curve, "nll": curve, "grad_norm": curve, "weight_diff_norm": curve, "kl_vs_base": curve}
        if objective
        else {},
        config={"loss": objective, "learning_rate": 0.001 * trained, "r": 16} if objective else {},
        run_path=f"demo/runs/{name}" if objective else None,
        training_seconds=90.0,
        evaluation_seconds=20.0,
    )


def made_up_base() -> ModelResult:
    return made_up_model(BASE, None, 0, 0, 0.0)


def made_up_failure() -> ModelResult:
    return ModelResult("dft", "dft", Status.FAILED, "RuntimeError: no <memory> left", config={"loss": "dft"})


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
        seed=7,
        created="2026-01-01T00:00:00+00:00",
        task="trained",
        task_again="paraphrase",
        measures=MEASURES,
        models=(made_up_base(), *shown),
        data={"train.jsonl": "0a" * 32},
        environment={"versions": {"torch": "2.13.0"}},
        introduction="An introduction.",
        notes=("A note.",),
        sources=("A source.",),
    )
