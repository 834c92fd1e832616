"""Parts of the page that need neither server nor browser. Not here: the pages (`tests/e2e/test_page.py`)."""

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tutelage.data.purposes import checked_purpose
from tutelage.jobs.kinds import KINDS, JobRequest, checked
from tutelage.jobs.records import Worker
from tutelage.jobs.requirements import CloudType
from tutelage.jobs.status import JobStatus
from tutelage.server.page import formats
from tutelage.server.page.compare import PRIOR, TASK, first_choice, hint, measures_of
from tutelage.server.page.examples import EXAMPLES
from tutelage.server.page.files import saved_as
from tutelage.server.page.records import Evaluation, RunChoice
from tutelage.server.page.rendering import local
from tutelage.server.page.scatter import HEIGHT, LEFT, RIGHT, WIDTH, scatter_of
from tutelage.server.page.telling_apart import names_of
from tutelage.server.page.workers import state_of

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "just now"),
        (4.9, "just now"),
        (59, "59 s ago"),
        (60, "1 min ago"),
        (3599, "59 min ago"),
        (3600, "1 h ago"),
        (47 * 3600, "47 h ago"),
        (48 * 3600, "2 d ago"),
        (29 * 86400, "29 d ago"),
        (31 * 86400, "2026-01-29"),
    ],
)
def test_times_are_told_in_the_largest_unit_that_fits(seconds: float, text: str) -> None:
    """By hand, on both sides of each limit; 31 days before 1 March 2026 is 29 January."""
    assert formats.ago(NOW - timedelta(seconds=seconds), NOW) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (4.21, "4.2 s"),
        (59, "59 s"),
        (185, "3 min 05 s"),
        (8045, "2 h 14 min"),
        (3 * 86400 + 4 * 3600, "3 d 4 h"),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    """By hand: 8045 s are 2 h 14 min 5 s."""
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1400, "1.4 kB"), (123456, "123 kB"), (3.3e6, "3.3 MB"), (5e12, "5.0 TB")],
)
def test_sizes_count_in_thousands(count: float, text: str) -> None:
    """By hand."""
    assert formats.size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.143841, "0.1438"),
        (2048, "2\u202f048"),
        (1e-5, "1e-05"),
        (True, "true"),
        (None, "null"),
        ("text", "text"),
        ([1, "ü"], '[1, "ü"]'),
    ],
)
def test_numbers_have_four_digits_and_other_values_are_json(value: Any, text: str) -> None:
    """By hand."""
    assert formats.number(value) == text


def test_parts_of_links_are_encoded_to_the_last_character() -> None:
    """The encodings of RFC 3986 for what could end a part of a path, a query or an attribute."""
    assert formats.part('a/b?c#d"<&:\u00fc') == "a%2Fb%3Fc%23d%22%3C%26%3A%C3%BC"


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("a\nb\n", "a\nb\n"),
        ("  0%\r 50%\r100%\ndone\n", "100%\ndone\n"),
        (" 10%\r 20%\r", " 20%"),
        ("windows\r\nlines\r\n", "windows\nlines\n"),
        ("\x1b[1;31mred\x1b[0m \x1b]0;title\x07text", "red text"),
        ("\r\r\n", "\n"),
        ("<script>", "<script>"),
    ],
)
def test_logs_are_shown_as_a_terminal_would_have(printed: str, shown: str) -> None:
    """By hand: a return goes to the beginning of the line, what follows is written over it."""
    assert formats.shown_log(printed) == shown


@pytest.mark.parametrize(
    ("text", "cell"), [("loss", "loss"), ("=1+1", "'=1+1"), ("@x", "'@x"), ("-x", "'-x"), ("a=b", "a=b"), ("", "")]
)
def test_no_cell_of_a_table_is_a_formula(text: str, cell: str) -> None:
    """Spreadsheets calculate what begins with =, +, - or @; an apostrophe in front makes it a text."""
    assert formats.cell(text) == cell


@pytest.mark.parametrize(
    "elsewhere",
    [None, "", "jobs", "//example.com/jobs", "https://example.com", "/jobs\\x", "/jobs\r\nSet-Cookie: a=b", "/ü"],
)
def test_links_that_may_lead_elsewhere_are_not_followed(elsewhere: str | None) -> None:
    """Whatever a form or link names as the page to go on to."""
    assert local(elsewhere, "/otherwise") == "/otherwise"


def test_links_within_the_page_are_followed() -> None:
    """A path with a query, as the forms send it."""
    assert local("/jobs?status=pending&search=a%20b", "/otherwise") == "/jobs?status=pending&search=a%20b"


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("adapter/model.safetensors", "model.safetensors"),
        ("..\\..\\evil.exe", "evil.exe"),
        ("../..", "result-file-1"),
        ("a\nb\x00.txt", "ab.txt"),
        ("", "result-file-1"),
    ],
)
def test_files_are_saved_under_a_name_and_not_a_path(filename: str, name: str) -> None:
    """By hand: the last part, without what cannot be printed; the id where nothing is left."""
    assert saved_as(filename, "result:file-1") == name


@pytest.mark.parametrize("kind", KINDS)
def test_examples_of_the_form_are_jobs_as_they_stand(kind: str) -> None:
    """With a file where the kind reads one: the checks of the queue find nothing, and it runs on any worker."""
    example = EXAMPLES[kind]
    file = {example.file: "conversations:file-0123456789ab"} if example.file is not None else {}
    request = JobRequest(
        kind,
        {**example.params, **file},
        entrypoint=example.entrypoint or None,
        requires_vram_gb=0,
        prefix=example.prefix,
    )
    assert checked(request).kind == kind
    assert (example.file is not None) == (kind not in ("inspect_ai", "api", "custom"))


@pytest.mark.parametrize("kind", [kind for kind, example in EXAMPLES.items() if example.file is not None])
def test_rows_of_the_examples_pass_the_checks_of_an_upload(kind: str, tmp_path: Path) -> None:
    """The checks are those of `/v1/files` for the purpose."""
    path = tmp_path / "rows.jsonl"
    path.write_text(EXAMPLES[kind].row + "\n", encoding="utf-8")
    expected = "multiple_choice" if kind == "multiple_choice" else "conversations"
    assert checked_purpose(path, EXAMPLES[kind].purpose) == expected


def _run(number: int, **params: Any) -> RunChoice:
    identity = f"run-{number:032x}"
    return RunChoice(identity, f"ftjob-{number}", "fine_tuning", JobStatus.COMPLETED, "smollm2", params, NOW)


def _names(*runs: RunChoice) -> list[str]:
    names = names_of(runs)
    return [names[run.id] for run in runs]


def test_runs_are_told_apart_by_their_objectives_where_that_is_enough() -> None:
    """However else they differ."""
    assert _names(_run(1, loss="sft", r=16), _run(2, loss="sdft", r=8, sdft_ema_alpha=0.02)) == ["sft", "sdft"]


def test_runs_are_told_apart_by_the_options_that_differ() -> None:
    """The learning rate differs, the rank does not."""
    assert _names(_run(1, loss="sft", r=16, learning_rate=1e-4), _run(2, loss="sft", r=16, learning_rate=2e-4)) == [
        "sft learning_rate=0.0001",
        "sft learning_rate=0.0002",
    ]


def test_of_many_differences_those_that_tell_most_are_named() -> None:
    """Three at most: learning rate and seed before others, a file only where nothing else differs."""
    first = _run(1, loss="sft", a=1, b=1, learning_rate=1e-4, seed=1, training_file="x")
    second = _run(2, loss="sft", a=2, b=2, learning_rate=2e-4, seed=2, training_file="y")
    assert _names(first, second)[1] == "sft learning_rate=0.0002 seed=2 a=2"
    assert _names(_run(1, loss="sft", training_file="x"), _run(2, loss="sft", training_file="y"))[1] == (
        "sft training_file=y"
    )


def test_only_runs_of_the_same_objective_are_told_apart_by_options() -> None:
    """Options of another objective are null in them and tell nothing; the ids' beginnings are 000000 and abcdef."""
    runs = [_run(1, loss="sft", r=8), _run(2, loss="dft", r=8), _run(0xABCDEF << 104, loss="dft", r=8)]
    assert _names(*runs, _run(3, loss="sdft", r=8, sdft_check_rows=32)) == ["sft", "dft 000000", "dft abcdef", "sdft"]
    assert _names(_run(1, loss="sft", beta=None), _run(2, loss="sft", beta=0.5)) == ["sft", "sft beta=0.5"]


def test_runs_of_one_job_are_told_apart_by_their_ids() -> None:
    """Two attempts with the same params; the beginnings of their ids are 000000."""
    first, second = RunChoice(*vars(_run(1, loss="sft")).values()), _run(0xABCDEF << 104, loss="sft")
    assert _names(first, second) == ["sft 000000", "sft abcdef"]


def test_a_scatter_has_round_ticks_around_all_points() -> None:
    """x runs from 0.1 to 0.6: with room 0.07 to 0.63, five ticks 0.2 apart from 0 to 0.8. y is one value, 0.9: a tenth
    around it is 0.81 to 0.99, ticks 0.05 apart from 0.8 to 1."""
    found = scatter_of({0: (0.1, 0.9), 2: (0.6, 0.9)})
    assert [tick.text for tick in found.x_ticks] == ["0", "0.2", "0.4", "0.6", "0.8"]
    assert [tick.text for tick in found.y_ticks] == ["0.8", "0.85", "0.9", "0.95", "1"]
    assert [dot.index for dot in found.dots] == [0, 2]
    across = WIDTH - RIGHT - LEFT
    assert [dot.x for dot in found.dots] == [LEFT + across / 8, LEFT + across * 6 / 8]
    assert found.dots[0].y == found.dots[1].y == found.y_ticks[2].at
    assert found.y_ticks[0].at > found.y_ticks[-1].at > 0
    assert found.y_ticks[0].at < HEIGHT


def test_a_scatter_of_what_is_never_negative_begins_at_zero() -> None:
    """A divergence from 0.01 to 3: six hundredths of the distance around it would begin below zero."""
    found = scatter_of({0: (0.01, -3), 1: (3, -0.01)})
    assert [found.x_ticks[0].text, found.y_ticks[-1].text] == ["0", "0"]


@pytest.mark.parametrize("value", [0.0, 1e-300, -5e9, 1e15])
def test_a_scatter_of_equal_points_has_two_ticks_or_more(value: float) -> None:
    """Whatever the value: no division by zero, and the point is inside."""
    found = scatter_of({0: (value, value), 1: (value, value)})
    ticks = [tick.at for tick in found.x_ticks]
    assert len(ticks) >= 2
    assert ticks[0] <= found.dots[0].x <= ticks[-1]


def test_measures_join_what_runs_reported_and_what_was_asked_of_their_models() -> None:
    """Two runs; the model of the second was asked twice on one file, of which the newer answer counts."""
    evaluated = [
        Evaluation("mcjob-1", "multiple_choice", "ftjob-2", "task.jsonl", {"accuracy": 0.5}),
        Evaluation("mcjob-2", "multiple_choice", "ftjob-2", "task.jsonl", {"accuracy": 0.75, "file": "result:file-1"}),
    ]
    measures = measures_of(
        ["ftjob-1", "ftjob-2"],
        [{"kl_vs_base": 0.6, "step": 10, "ok": True}, {"kl_vs_base": 0.1, "loss": float("nan"), "nll": 2}],
        evaluated,
    )
    assert measures.values == {
        "accuracy (multiple_choice of task.jsonl)": [None, 0.75],
        "kl_vs_base": [0.6, 0.1],
        "nll": [None, 2.0],
    }
    assert list(measures.values) == ["kl_vs_base", "accuracy (multiple_choice of task.jsonl)", "nll"]
    assert measures.comparable == ["kl_vs_base"]


def test_the_first_measures_on_the_axes_are_a_task_and_what_was_kept() -> None:
    """By the parts of names in `TASK` and `PRIOR`, in their order."""
    names = ["accuracy (multiple_choice of a.jsonl)", "delta_w_norm", "kl_vs_base", "loss", "token_accuracy"]
    assert first_choice(names, PRIOR) == "kl_vs_base"
    assert first_choice(names, TASK) == "accuracy (multiple_choice of a.jsonl)"
    assert first_choice(["loss"], TASK) is None
    assert [hint("kl_vs_base"), hint("accuracy"), hint("epoch")] == ["less is better", "more is better", ""]


def _worker(seen: float, stopped: bool = False) -> Worker:
    return Worker(
        id="worker-1",
        name="a",
        status="active",
        hardware="cpu",
        gpus=0,
        vram_gb=0,
        cloud_type=CloudType.SECURE,
        images=None,
        cached_models=[],
        disk_free_gb=None,
        cost_per_hour=0,
        version="1",
        run_id=None,
        reason=None,
        registered_at=NOW,
        last_seen_at=NOW - timedelta(seconds=seen),
        stopped_at=NOW if stopped else None,
    )


def test_workers_are_silent_when_explain_leaves_them_out() -> None:
    """After 90 seconds, `registry.SILENT_AFTER_SECONDS`."""
    assert [state_of(_worker(89), NOW), state_of(_worker(91), NOW), state_of(_worker(0, True), NOW)] == [
        "active",
        "silent",
        "stopped",
    ]
