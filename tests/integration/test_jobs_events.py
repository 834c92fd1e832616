"""Events of runs: each once, in order, whatever JSON they hold; their newest values and their series."""

import math
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.databases import Scene, in_threads, new_organization, new_run_id
from tutelage.errors import JobError, NotFoundError
from tutelage.jobs.database import Database
from tutelage.jobs.event_log import MAX_EVENT_BYTES, EventLog, NewEvent
from tutelage.jobs.records import Series
from tutelage.jobs.status import JobStatus

EVENTS = 100_000
SERIES_SECONDS = 1.0


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(database)


def appended(scene: Scene, *data: Any, run: str | None = None) -> str:
    """A run with these events; its id."""
    run = run or scene.running().run_id
    new = [NewEvent(f"{number}", fields) for number, fields in enumerate(data)]
    assert EventLog(scene.database).append(scene.organization, run, new) == len(new)
    return run


def test_events_come_back_once_and_in_order(scene: Scene) -> None:
    log, run = EventLog(scene.database), scene.running().run_id
    first = [NewEvent("a", {"step": 1, "loss": 2.0}), NewEvent("b", {"step": 2, "loss": None}, file="result:file-0")]
    assert log.append(scene.organization, run, first) == 2
    assert log.append(scene.organization, run, [*first, NewEvent("c", {"step": 3}), NewEvent("c", {"step": 3})]) == 1
    assert log.append(scene.organization, run, []) == 0
    got = log.of_run(scene.organization, run)
    assert [(one.data, one.file) for one in got] == [
        ({"step": 1, "loss": 2.0}, None),
        ({"step": 2, "loss": None}, "result:file-0"),
        ({"step": 3}, None),
    ]
    assert [one.id for one in got] == sorted({one.id for one in got})
    assert log.of_run(scene.organization, run, after=got[0].id, limit=1) == [got[1]]
    assert log.latest(scene.organization, run_id=run) == {"step": 3, "loss": 2.0}
    assert {one.run_id for one in got} == {run}
    other = new_organization(scene.database)
    for look in (log.of_run, log.series):
        with pytest.raises(NotFoundError):
            look(other, run)
    with pytest.raises(NotFoundError):
        log.append(other, run, first)


def test_four_threads_that_send_the_same(scene: Scene) -> None:
    """Each repeats what others send; every event is there once, and the numbers of those added add up."""
    log, run = EventLog(scene.database), scene.running().run_id

    def send(offset: int) -> int:
        added = 0
        for start in range(0, 60, 20):
            ids = [(start + offset * 5 + number) % 60 for number in range(30)]
            added += log.append(scene.organization, run, [NewEvent(str(one), {"value": one}) for one in ids])
        return added

    added = in_threads([lambda offset=offset: send(offset) for offset in range(4)])
    assert sum(added) == 60
    assert sorted(one.data["value"] for one in log.of_run(scene.organization, run)) == list(range(60))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


STRANGE: list[tuple[Any, Any]] = [
    (math.nan, None),
    (math.inf, None),
    (-math.inf, None),
    (10**400, None),
    (2**63, 2.0**63),
    (-(2**63) + 1, -(2**63) + 1),
    ("a\0b", "a\ufffdb"),
    ("a\ud800b", "a\ufffdb"),
    ("\U0001f600 \u202e </script>", "\U0001f600 \u202e </script>"),
    (True, True),
    ([1, (2.5, {"x\0": None})], [1, [2.5, {"x\ufffd": None}]]),
    (nested(60), nested(60)),
    (5e-324, 5e-324),
    (1.7976931348623157e308, 1.7976931348623157e308),
]


@pytest.mark.parametrize(("sent", "kept"), STRANGE, ids=lambda value: ascii(value)[:20])
def test_values_that_no_database_holds_are_kept_as_near_as_can_be(scene: Scene, sent: Any, kept: Any) -> None:
    """As `plain_json` says: null, U+FFFD, floats; the same on both databases."""
    run = appended(scene, {"value": sent, "step": 1})
    log = EventLog(scene.database)
    (event,) = log.of_run(scene.organization, run)
    value = event.data["value"]
    assert (float(value) if isinstance(kept, float) else value) == kept
    latest = log.latest(scene.organization, run_id=run)
    assert ("value" in latest) == (kept is not None)


@pytest.mark.parametrize(
    "fields",
    [
        {"step": True, "loss": 1.0},
        {"step": 10**30, "loss": 1.0},
        {"step": "1", "loss": 1.0},
        {"step": None, "loss": 1.0},
        {"step": -(2**63), "loss": 1.0},
        {"tag": "t\0" * 200, "loss": 1.0},
        {"tag": 5, "loss": 1.0},
    ],
    ids=str,
)
def test_steps_and_tags_of_any_kind_are_taken(scene: Scene, fields: dict[str, Any]) -> None:
    """What cannot be a step or a tag is a field like others."""
    run = appended(scene, fields)
    (series,) = [one for one in EventLog(scene.database).series(scene.organization, run) if one.field == "loss"]
    assert series.values == [1.0]


@pytest.mark.parametrize("client_id", ["a\0", "a\ud800", "x" * 5000], ids=["NUL", "surrogate", "long"])
def test_client_ids_of_any_kind_are_idempotent_or_refused(scene: Scene, client_id: str) -> None:
    """Sending twice is appending once; what cannot be kept is an error of the sender, not of the storage."""
    log, run = EventLog(scene.database), scene.running().run_id
    try:
        added = [log.append(scene.organization, run, [NewEvent(client_id, {"a": 1})]) for _ in range(2)]
    except JobError:
        assert log.of_run(scene.organization, run) == []
        return
    assert added == [1, 0]


@pytest.mark.parametrize("file", ["a\0", "a\ud800"], ids=["NUL", "surrogate"])
def test_file_ids_that_no_database_holds(scene: Scene, file: str) -> None:
    log, run = EventLog(scene.database), scene.running().run_id
    try:
        assert log.append(scene.organization, run, [NewEvent("1", {"a": 1}, file=file)]) == 1
    except JobError:
        assert log.of_run(scene.organization, run) == []


def test_what_is_too_large_or_too_deep_is_refused(scene: Scene) -> None:
    """With all that came with it: a batch is taken in whole or not at all."""
    log, run = EventLog(scene.database), scene.running().run_id
    good = NewEvent("good", {"a": 1})
    with pytest.raises(JobError, match=rf"event of \d+ bytes: more than {MAX_EVENT_BYTES} are not taken; log a file"):
        log.append(scene.organization, run, [good, NewEvent("1", {"a": "x" * MAX_EVENT_BYTES})])
    with pytest.raises(JobError, match="nested more than 64 levels deep"):
        log.append(scene.organization, run, [good, NewEvent("1", {"a": nested(100_000)})])
    with pytest.raises(JobError, match="set has no form in JSON"):
        log.append(scene.organization, run, [good, NewEvent("1", {"a": {1}})])
    assert log.of_run(scene.organization, run) == []
    assert log.append(scene.organization, run, [NewEvent("1", {"a": "x" * (MAX_EVENT_BYTES - 9)})]) == 1


def test_a_thinned_series_holds_its_last_point(scene: Scene) -> None:
    """11 events of one tag in 4 points: every third, counted from the end: 1, 4, 7, 10; 2 of the other both."""
    data = [{"tag": "train", "step": step, "loss": step / 2, "text": "x", "good": True} for step in range(11)]
    data[5:5] = [{"tag": "eval", "step": step, "loss": 10.0 + step} for step in range(2)]
    run = appended(scene, *data)
    assert EventLog(scene.database).series(scene.organization, run, points=4) == [
        Series("train", "loss", [1.0, 4.0, 7.0, 10.0], [0.5, 2.0, 3.5, 5.0]),
        Series("eval", "loss", [0.0, 1.0], [10.0, 11.0]),
    ]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    points=st.integers(1, 12),
    rows=st.lists(st.tuples(st.sampled_from(["a", "b"]), st.floats(-1e6, 1e6), st.booleans()), min_size=1, max_size=40),
)
def test_series_are_points_of_the_events(scene: Scene, points: int, rows: list[tuple[str, float, bool]]) -> None:
    """At most so many of a tag, in order, each one that was reported, the last of each tag among them."""
    data = [{"tag": tag, "step": step, "x": value if has else None} for step, (tag, value, has) in enumerate(rows)]
    claim = scene.running(new_run_id())
    run = appended(scene, *data, run=claim.run_id)
    found = {series.tag: series for series in EventLog(scene.database).series(scene.organization, run, points=points)}
    for tag in ("a", "b"):
        of_tag = [(one["step"], one["x"]) for one in data if one["tag"] == tag]
        kept = list(zip(found[tag].steps, found[tag].values, strict=True)) if tag in found else []
        assert len(kept) <= points
        assert kept == sorted(kept)
        assert set(kept) <= {(float(step), value) for step, value in of_tag if value is not None}
        if of_tag and of_tag[-1][1] is not None:
            assert kept[-1] == of_tag[-1]
    scene.queue.finish(scene.organization, run, JobStatus.COMPLETED)


def test_a_step_written_as_a_float_is_that_step(scene: Scene) -> None:
    """JSON has one kind of number: 3.0 is 3."""
    run = appended(scene, {"step": 3.0, "loss": 1.0}, {"step": 7.0, "loss": 2.0})
    (series,) = EventLog(scene.database).series(scene.organization, run)
    assert (series.steps, series.values) == ([3.0, 7.0], [1.0, 2.0])


def test_points_without_a_step_stand_where_they_were_reported(scene: Scene) -> None:
    """Their places do not depend on how many points somebody asks for, nor on events of other tags."""
    data = [{"tag": tag, "loss": 1.0} for _ in range(5) for tag in ("a", "b")]
    run = appended(scene, *data)
    log = EventLog(scene.database)
    whole = {one.tag: one.steps for one in log.series(scene.organization, run)}
    thinned = {one.tag: one.steps for one in log.series(scene.organization, run, points=2)}
    assert all(set(thinned[tag]) <= set(whole[tag]) for tag in "ab")
    assert all(one[-1] == whole[tag][-1] for tag, one in thinned.items())


def test_a_hundred_thousand_events(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """The best of five, as other tests, and what the database does with so many new rows, go on beside this one."""
    log, run = EventLog(scene.database), scene.running().run_id
    begin = time.monotonic()
    for start in range(0, EVENTS, 1000):
        new = [
            NewEvent(str(step), {"tag": "train", "step": step, "loss": step / 8, "lr": 1e-4, "grad_norm": 0.5})
            for step in range(start, start + 1000)
        ]
        assert log.append(scene.organization, run, new) == 1000
    appending = time.monotonic() - begin
    drawing = float("inf")
    for _ in range(5):
        begin = time.monotonic()
        series = {one.field: one for one in log.series(scene.organization, run)}
        drawing = min(drawing, time.monotonic() - begin)
    with capsys.disabled():
        kind = "sqlite" if scene.database.is_sqlite else "postgresql"
        print(f"\n{kind}: {EVENTS / appending:.0f} events/s appended, series of {EVENTS} in {drawing:.2f} s")
    assert set(series) == {"loss", "lr", "grad_norm"}
    assert len(series["loss"].values) == 500
    assert series["loss"].steps[-1] == EVENTS - 1
    assert series["loss"].values == [step / 8 for step in series["loss"].steps]
    assert log.latest(scene.organization, run_id=run)["loss"] == (EVENTS - 1) / 8
    assert drawing < SERIES_SECONDS
