"""Sentences for given numbers, whichever way these fall."""

import math
from dataclasses import replace

import pytest

from tests.made_up import (
    CAPITALS_LOG_PROB,
    TRAINED,
    made_up_failure,
    made_up_model,
    made_up_results,
    made_up_seeds,
    right,
    spread,
)
from tutelage.evaluation import Role
from tutelage.experiments.report import report_html
from tutelage.experiments.results import ModelResult, Score, Status
from tutelage.experiments.sentences import findings, joined, number_text, value_text
from tutelage.experiments.specification import KL_VS_BASE


@pytest.mark.parametrize(
    ("score", "measure", "text"),
    [
        (right(31), TRAINED, "31 of 32"),
        (right(0), TRAINED, "0 of 32"),
        (Score.of([1.0, 1.0, 0.0], [1.0, 0.0, 0.0]), TRAINED, "1.5 of 3"),
        (spread(0.4), TRAINED, "0.40"),
        (spread(0.31849), KL_VS_BASE, "0.318"),
        (spread(-4.125), CAPITALS_LOG_PROB, "−4.12"),
    ],
)
def test_value_text(score: object, measure: object, text: str) -> None:
    assert value_text(score, measure) == text  # pyright: ignore[reportArgumentType]


def test_a_rounding_error_below_zero_is_zero() -> None:
    assert number_text(-1e-9, KL_VS_BASE) == "0.000"


def test_joined() -> None:
    assert [joined(["a"]), joined(["a", "b"]), joined(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_who_learned_most_and_who_is_within_noise_of_it() -> None:
    """sdft misses 1 of 32: the paired interval of the difference reaches 0. dft misses 18: far from 0."""
    learned = findings(made_up_results()).learned
    assert learned[0] == (
        "Trained question: base 0 of 32; sft learned most with 32 of 32; sdft 31 of 32 (within noise of sft) "
        "and dft 14 of 32."
    )
    assert learned[1] == ("Paraphrase: base 0 of 32; sft learned most with 31 of 32; sdft 20 of 32 and dft 12 of 32.")


def test_equals_share_the_first_place() -> None:
    results = made_up_results(made_up_model("sft", "sft", 32, 31, 0.3), made_up_model("sdft", "sdft", 32, 20, 0.1))
    assert findings(results).learned[0] == (
        "Trained question: base 0 of 32; sft and sdft learned most with 32 of 32 each."
    )


def test_nothing_learned_is_said() -> None:
    results = made_up_results(made_up_model("sft", "sft", 0, 0, 0.0), made_up_model("sdft", "sdft", 0, 0, 0.0))
    assert findings(results).learned[0] == (
        "Trained question: base 0 of 32; no run is above it (sft 0 of 32 and sdft 0 of 32)."
    )


def test_a_gain_within_noise_is_said() -> None:
    """1 of 32 right: a resample without that item has probability (31/32)^32 = 0.36, so the interval reaches 0."""
    text = findings(made_up_results(made_up_model("sft", "sft", 1, 0, 0.1))).learned[0]
    assert text.startswith(
        "Trained question: base 0 of 32; sft learned most with 1 of 32 (the gain over base is within"
    )


def test_dft_behind_and_not_behind() -> None:
    """Only where nothing but the loss differs."""

    def at_one_rate(name: str, right: int) -> ModelResult:
        model = made_up_model(name, name, right, right, 0.3)
        return replace(model, seeds=(replace(model.seeds[0], config={"loss": name, "learning_rate": 1e-3}),))

    behind = findings(made_up_results(at_one_rate("sft", 32), at_one_rate("dft", 14))).learned[2]
    assert behind.endswith("in trained question dft trails sft, which differs in nothing else, beyond noise.")
    even = made_up_results(at_one_rate("sft", 30), at_one_rate("dft", 30))
    assert findings(even).learned[2].endswith("yet in trained question dft is not behind sft beyond noise.")
    for others in (made_up_results(made_up_model("dft", "dft", 30, 30, 0.2)), made_up_results()):
        assert not any("objective weights" in sentence for sentence in findings(others).learned)


def test_what_is_left_of_a_stage_is_said() -> None:
    """sft has 32, then 12, then 12; sdft 20, then 30, then 31, which 30 is within noise of."""

    def staged(name: str, *counts: int) -> ModelResult:
        model = made_up_model(name, name, counts[-1], counts[-1], 0.1)
        seed = model.seeds[0]
        after = {
            stage: {**seed.scores, "trained": right(count).items[0], "paraphrase": right(count).items[0]}
            for stage, count in zip(("one", "two", "three"), counts, strict=True)
        }
        return replace(model, seeds=(replace(seed, after=after),))

    results = replace(
        made_up_results(staged("sft", 32, 12, 12), staged("dft", 31, 30, 30), staged("sdft", 20, 30, 31)),
        stages=("one", "two", "three"),
    )
    assert findings(results).kept[0] == (
        "Trained question over the stages: sft 32 of 32 after one and 12 of 32 at the end; dft 31 of 32 after one and "
        "30 of 32 at the end (within noise); sdft 31 of 32 at the end, its most."
    )


def test_measures_of_which_less_is_better_are_not_spoken_of_as_learned() -> None:
    results = replace(made_up_results(), stages=("one",))
    fewer = tuple(
        replace(measure, higher_is_better=False) if measure.role is Role.TASK else measure
        for measure in results.measures
    )
    said = findings(replace(results, measures=fewer))
    assert not any("over the stages" in text or "objective weights" in text for text in said.all)
    assert not any("learned most" in text for text in said.all)


def test_seeds_that_failed_are_not_counted() -> None:
    sft = made_up_seeds("sft", "sft", 30, 31, 32)
    lost = replace(sft.seeds[2], status=Status.FAILED, error="no memory", scores={})
    dft = replace(sft, name="dft", seeds=(*sft.seeds[:2], lost))
    assert any(
        "over items and the seeds that finished (sft: 3 seeds, dft: 2 seeds)." in text
        for text in findings(made_up_results(sft, dft)).caveats
    )
    assert any("over items and 3 seeds." in text for text in findings(made_up_results(sft)).caveats)


def test_a_measure_that_two_models_have_for_no_item_in_common_is_not_spoken_of() -> None:
    def judged(model: ModelResult, *points: float) -> ModelResult:
        seed = replace(model.seeds[0], scores={**model.seeds[0].scores, "paraphrase": points})
        return replace(model, seeds=(seed,))

    first = judged(made_up_model("sft", "sft", 32, 31, 0.3), *([1.0] * 16), *([math.nan] * 16))
    second = judged(made_up_model("dft", "dft", 14, 12, 0.2), *([math.nan] * 16), *([1.0] * 16))
    assert not any(text.startswith("Paraphrase") for text in findings(made_up_results(first, second)).all)
    assert any(text.startswith("Paraphrase") for text in findings(made_up_results(first)).all)


def test_the_check_on_unseen_items() -> None:
    assert findings(made_up_results()).learned[-1] == (
        "Unseen country (a check, never trained): base 0 of 32, sft 0 of 32, dft 0 of 32 and sdft 0 of 32; "
        "no run differs from base beyond noise, as it should be."
    )


def test_who_drifted_least_with_ratios() -> None:
    """0.1 / 0.25 = 0.40 and 0.1 / 0.3 = 0.33."""
    assert findings(made_up_results()).kept[0] == (
        "KL(tuned ‖ base) on everyday prompts, in nats per token: sdft 0.100, dft 0.250 and sft 0.300. "
        "Least drifted sdft: 0.40 times the KL of dft and 0.33 times the KL of sft."
    )


def test_no_drift_has_no_ratio() -> None:
    results = made_up_results(made_up_model("sft", "sft", 0, 0, 0.0), made_up_model("sdft", "sdft", 0, 0, 0.0))
    assert findings(results).kept[0].endswith("sft 0.000 and sdft 0.000. Least drifted sft.")


def test_prior_within_noise() -> None:
    assert findings(made_up_results()).kept[1] == (
        "Capitals: base 108 of 120; sft (108 of 120), dft (108 of 120) and sdft (108 of 120) are within noise of that."
    )


def test_caveats_name_notes_level_and_failures() -> None:
    results = made_up_results(made_up_model("sft", "sft", 32, 31, 0.3), made_up_failure())
    caveats = findings(results).caveats
    assert caveats[0] == "A note."
    assert caveats[1].startswith("Intervals are 95 % bootstrap intervals")
    assert caveats[-1] == "dft with seed 7 failed and is in no table or figure: RuntimeError: no <memory> left"


def test_seeds_are_in_the_intervals_and_few_of_them_are_said_to_be_few() -> None:
    results = made_up_results(made_up_seeds("sft", "sft", 30, 32, 28), made_up_seeds("sdft", "sdft", 8, 9, 10))
    found = findings(results)
    assert found.learned[0] == "Trained question: base 0 of 32; sft learned most with 30.0 of 32; sdft 9.0 of 32."
    assert found.caveats[1].startswith("Intervals are 95 % bootstrap intervals over items and 3 seeds.")
    assert found.caveats[2].startswith("3 seeds say little of how far seeds differ")


def test_the_bound_for_scores_without_spread() -> None:
    """(1 − x)^32 = 0.05 gives x = 0.089."""
    assert any("With 32 items, that still admits a true rate up to 9 % away." in text for text in _all())


def _all() -> list[str]:
    return findings(made_up_results()).all


def test_a_run_without_a_finite_kl_is_left_out_of_the_sentence_and_not_of_the_page() -> None:
    model = made_up_model("sft", "sft", 32, 31, 0.3)
    broken = dict.fromkeys(("kl_vs_base", "kl_base_vs_model"), (math.nan,) * 16)
    seed = replace(model.seeds[0], scores={**model.seeds[0].scores, **broken})
    results = made_up_results(replace(model, seeds=(seed,)), made_up_model("dft", "dft", 14, 12, 0.25))
    assert findings(results).kept[0].startswith("KL(tuned ‖ base) on everyday prompts, in nats per token: dft 0.250.")
    assert "no item has a value" in report_html(results)
