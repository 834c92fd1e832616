"""The page and the figures: numbers from the results, nothing from outside, nothing unescaped."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.colors import to_hex

from tests.made_up import (
    CAPITALS,
    CAPITALS_LOG_PROB,
    TRAINED,
    made_up_failure,
    made_up_model,
    made_up_results,
    made_up_seeds,
)
from tutelage.config import OBJECTIVES
from tutelage.evaluation import Measure, Role, Unit
from tutelage.experiments.curves import Panel, panel_figure, panels_of, trajectories_figure
from tutelage.experiments.figure_style import DARK, LIGHT, OBJECTIVE_COLOURS, OBJECTIVE_MARKERS
from tutelage.experiments.figures import tradeoff_figure, write_figures
from tutelage.experiments.report import differing_options, questions, report_html, shared_options, trained_otherwise
from tutelage.experiments.specification import KL_VS_BASE

SHOWN = ("loss", "nll", "grad_norm", "delta_w_norm", "kl_vs_base")
"""What made-up runs have curves of."""


def panels() -> list[Panel]:
    return panels_of(made_up_results())


class Page(HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html() -> str:
    return report_html(made_up_results())


def test_the_page_holds_every_number_of_the_results(html: str) -> None:
    results = made_up_results()
    shown = {
        (attrs["data-model"], attrs["data-measure"]): float(attrs["data-value"] or "nan")
        for _, attrs in Page(html).tags
        if "data-value" in attrs
    }
    expected = {(model.name, name): score.mean for model in results.models for name, score in model.scores.items()}
    assert shown == expected


def test_the_page_needs_nothing_from_outside(html: str) -> None:
    without_pictures = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", html)
    assert "http" not in without_pictures
    assert "//" not in without_pictures
    for tag, attrs in Page(html).tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "srcset"):
            assert (attrs.get(name) or "data:image/png;base64,").startswith("data:image/png;base64,")


def test_the_page_is_for_phones_paper_and_dark_rooms(html: str) -> None:
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in Page(html).tags
    assert "@media print" in html
    assert "@media (prefers-color-scheme: dark)" in html
    dark = [attrs for tag, attrs in Page(html).tags if tag == "source"]
    assert len(dark) == 1 + len(SHOWN)


def test_text_of_models_is_escaped(html: str) -> None:
    assert "sft says &lt;b&gt;+0&lt;/b&gt; &amp; more" in html
    assert "Made up &lt;for tests&gt;" in html
    assert "b" not in {tag for tag, _ in Page(html).tags}


def test_a_failed_run_is_marked_and_in_no_table() -> None:
    results = made_up_results(made_up_model("sft", "sft", 32, 31, 0.3), made_up_failure())
    html = report_html(results)
    page = Page(html)
    assert ("div", {"class": "failed", "role": "alert", "data-failed": "dft"}) in page.tags
    assert "RuntimeError: no &lt;memory&gt; left" in html
    assert "dft" not in {attrs.get("data-model") for _, attrs in page.tags}


def test_answers_stand_side_by_side_in_the_order_of_the_data() -> None:
    results = made_up_results()
    asked = questions(results, [results.base, *results.runs], "trained")
    assert [item.text for item in asked] == [f"question {index}" for index in range(32)]
    assert [(answer.name, answer.mark) for answer in asked[20].answers] == [
        ("base", "wrong"),
        ("sft", "right"),
        ("dft", "wrong"),
        ("sdft", "right"),
    ]


def test_options_that_differ_and_options_that_do_not() -> None:
    runs = made_up_results().runs
    assert differing_options(runs) == {"loss": ["sft", "dft", "sdft"], "learning_rate": [0.032, 0.014, 0.031]}
    assert shared_options(runs) == {"r": 16}


def test_each_objective_has_a_colour_and_a_marker_of_its_own() -> None:
    assert set(OBJECTIVE_COLOURS) == set(OBJECTIVE_MARKERS) == set(OBJECTIVES)
    assert len(set(OBJECTIVE_COLOURS.values())) == len(set(OBJECTIVE_MARKERS.values())) == len(OBJECTIVES)


def test_trajectories_have_a_panel_for_each_metric_with_labels_and_colours() -> None:
    figure = trajectories_figure(made_up_results(), LIGHT)
    drawn = figure.axes[: len(SHOWN)]
    assert tuple(panel.metric for panel in panels()) == SHOWN
    assert [axes.get_title() for axes in drawn] == [panel.title for panel in panels()]
    for axes, panel in zip(drawn, panels(), strict=True):
        assert axes.get_xlabel().startswith("optimizer step")
        assert axes.get_ylabel() == panel.unit
        colours = {line.get_label(): to_hex(line.get_color()).upper() for line in axes.lines}
        assert colours == {name: OBJECTIVE_COLOURS[name] for name in ("sft", "dft", "sdft")}
    drift = drawn[-1].lines[0]
    assert [list(drift.get_xdata()), list(drift.get_ydata())] == [[0, 1, 2], [0.0, 0.3, 0.6]]


def test_tradeoff_marks_every_model_at_its_numbers() -> None:
    against_prior, axes = tradeoff_figure(made_up_results(), LIGHT).axes
    assert against_prior.get_xlabel() == "capitals (share of items; dotted: base)"
    assert {text.get_text() for text in against_prior.texts} == {"base", "sft", "dft", "sdft"}
    points = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines if len(line.get_xdata()) == 1
    }
    assert {(0.0, 0.0), (0.3, 1.0), (0.3, 31 / 32), (0.25, 14 / 32), (0.1, 31 / 32), (0.1, 20 / 32)} <= {
        (round(x, 9), y) for x, y in points
    }
    assert {text.get_text() for text in axes.texts} == {"base", "sft", "dft", "sdft"}
    assert axes.get_xlabel() == "KL(tuned ‖ base) on everyday prompts (nats per token)"
    assert axes.get_ylabel() == "new knowledge (share of items)"


def test_figures_of_runs_that_did_not_move(tmp_path: Path) -> None:
    """One step of a run that learned nothing: no width, no height, and still a picture without a warning."""
    results = made_up_results(made_up_model("sft", "sft", 0, 0, 0.0))
    write_figures(results, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("tradeoff.pdf", "tradeoff.png", "training_trajectories.pdf", "training_trajectories.png"),
    ]
    first = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path, content in first.items():
        assert content.startswith(b"\x89PNG\r\n\x1a\n" if path.suffix == ".png" else b"%PDF-1.")
    write_figures(results, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_all_panels_have_the_same_steps() -> None:
    """Losses start at step 1 and drift at step 0: without a common axis, one step would be a point in the void."""
    axes = trajectories_figure(made_up_results(), LIGHT).axes[: len(SHOWN)]
    assert [panel.get_xlim() for panel in axes] == [pytest.approx((-0.06, 2.06))] * len(SHOWN)


def test_seeds_are_a_line_of_their_mean_in_a_band_from_lowest_to_highest() -> None:
    """KL at step 2 is 0.2 and 0.4."""
    results = made_up_results(made_up_seeds("sft", "sft", 30, 32))
    axes = trajectories_figure(results, LIGHT).axes[len(SHOWN) - 1]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([0.0, 0.15, 0.3])
    corners = axes.collections[0].get_paths()[0].vertices
    assert {round(float(y), 9) for x, y in corners if x == 2.0} == {0.2, 0.4}


def test_runs_of_one_objective_share_its_colour_and_differ_in_style() -> None:
    results = made_up_results(made_up_model("slow", "sft", 30, 30, 0.3), made_up_model("fast", "sft", 32, 32, 0.6))
    lines = trajectories_figure(results, LIGHT).axes[0].lines
    assert {to_hex(line.get_color()).upper() for line in lines} == {OBJECTIVE_COLOURS["sft"]}
    assert [line.get_linestyle() for line in lines] == ["-", "--"]


def test_what_had_to_be_left_out_is_on_the_page() -> None:
    model = made_up_model("sft", "sft", 30, 30, 0.3)
    seed = replace(model.seeds[0], failed={"questions": {"polite: no answer": 3}})
    html = report_html(made_up_results(replace(model, seeds=(seed,))))
    assert "<li>sft: questions: polite: no answer, 3 times</li>" in html


def test_a_panel_alone_is_as_the_theme_says() -> None:
    figure = panel_figure(made_up_results(), panels()[0], DARK)
    assert to_hex(figure.get_facecolor()) == DARK.paper


def test_measures_of_one_axis_have_one_unit() -> None:
    """Accuracy and log-probability of one evaluation: the second is in nats, and not on an axis of shares."""
    results = made_up_results()
    measures = (replace(CAPITALS, role=Role.TASK), replace(CAPITALS_LOG_PROB, role=Role.TASK), KL_VS_BASE)
    axes = tradeoff_figure(replace(results, measures=measures), LIGHT).axes[0]
    heights = [float(line.get_ydata()[0]) for line in axes.lines if len(line.get_xdata()) == 1]
    assert all(0.0 <= height <= 1.0 for height in heights)


def test_every_judgement_stands_below_its_answer() -> None:
    judgements = {"in_spanish": {"label": "spanish"}, "coherent": {"score": 85.0}, "kind": {"score": None}}
    models = [made_up_model(name, objective, 1, 1, 0.1) for name, objective in (("base", None), ("sft", "sft"))]
    rows = [row | {"judgements": judgements} for row in models[1].answers["trained"]]
    results = made_up_results(replace(models[1], answers={"trained": rows}))
    page = report_html(results)
    assert page.count("<small>in spanish: spanish, coherent: 85, kind: no judgement</small>") == len(rows)


def test_runs_of_another_day_say_what_they_were_trained_in() -> None:
    results = made_up_results()
    environment = {"versions": {"torch": "2.13.0"}, "git_commit": "abc"}
    old = environment | {"versions": {"torch": "2.12.0"}}
    models = [results.base]
    for run, trained_in in zip(results.runs, (old, environment, old), strict=True):
        models.append(replace(run, seeds=(replace(run.seeds[0], environments={"": trained_in}),)))
    results = replace(results, environment=environment, models=tuple(models))
    assert trained_otherwise(results) == [("versions torch", '"2.12.0"', "sft, seed 7; sdft, seed 7")]
    page = report_html(results)
    assert "<td>versions torch</td><td><code>&#34;2.12.0&#34;</code></td><td>sft, seed 7; sdft, seed 7</td>" in page
    assert "Trained before" not in report_html(made_up_results())


def test_without_a_task_the_tradeoff_shows_what_judges_said() -> None:
    results = made_up_results()
    judged = {
        "open.sense": Measure("open.sense", "open: sense", Role.FREEFORM, Unit.POINTS),
        "open.yes": Measure("open.yes", "open: yes", Role.FREEFORM, Unit.SHARE, higher_is_better=None),
    }
    models = tuple(
        replace(
            model,
            seeds=tuple(
                replace(seed, scores=dict(seed.scores) | {"open.sense": (50.0, 70.0), "open.yes": (1.0, 0.0)})
                for seed in model.seeds
            ),
        )
        for model in results.models
    )
    for names, title, height in (
        (("open.yes", "open.sense"), "Judged answers against drift: up and left is better", 60.0),
        (("open.yes",), "Judged answers against drift", 0.5),
    ):
        measures = (*(judged[name] for name in names), CAPITALS, KL_VS_BASE)
        prior, drift = tradeoff_figure(replace(results, measures=measures, models=models), LIGHT).axes
        assert drift.get_title() == title
        for axes in (prior, drift):
            points = [float(line.get_ydata()[0]) for line in axes.lines if line.get_marker() not in ("", "None", None)]
            assert points == [height] * len(models)


def test_without_a_measure_of_a_task_nothing_is_said_to_be_learned() -> None:
    results = made_up_results()
    worse = replace(TRAINED, higher_is_better=False)
    judged = Measure("trained", "open", Role.FREEFORM, Unit.SHARE)
    for measures in ((CAPITALS, KL_VS_BASE), (worse, replace(judged, name="paraphrase"), CAPITALS, KL_VS_BASE)):
        prior, drift = tradeoff_figure(replace(results, measures=measures), LIGHT).axes
        assert prior.get_title() == "No measure of a task against prior"
        assert drift.get_title() == "No measure of a task against drift"


def test_a_score_in_a_unit_of_its_own_is_a_number_and_no_mark() -> None:
    """1.0 of 100 points, or 0.0 nats, is neither right nor wrong."""
    results = made_up_results()
    assert {answer.mark for one in questions(results, [results.base], "trained") for answer in one.answers} <= {
        "right",
        "wrong",
    }
    measures = tuple(
        replace(measure, unit=Unit.OTHER) if measure.name == "trained" else measure for measure in results.measures
    )
    asked = questions(replace(results, measures=measures), [results.base], "trained")
    assert {answer.mark for one in asked for answer in one.answers} == {"value"}


def test_the_parts_of_an_evaluation_share_its_title() -> None:
    """Also where the title has a colon itself."""
    results = made_up_results()
    parts = (("open.tone", "Letters: formal: tone"), ("open.kind", "Letters: formal: kind"))
    measures = tuple(replace(TRAINED, name=name, title=title) for name, title in parts)
    models = tuple(
        replace(
            model,
            seeds=tuple(
                replace(seed, scores=dict(seed.scores) | {name: seed.scores["trained"] for name, _ in parts})
                for seed in model.seeds
            ),
            answers={"open": model.answers["trained"]},
        )
        for model in results.models
    )
    page = report_html(replace(results, models=models, measures=(*results.measures, *measures)))
    assert "<h3>Letters: formal</h3>" in page
