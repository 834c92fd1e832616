"""The append-only files of a run: what is read back, whatever happened while they were written."""

import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import OutputError
from tutelage.events import Event, EventLog, JsonLinesFile, Tag

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
json_rows = st.dictionaries(st.text(), json_values, max_size=4)


def steps(events: list[Event]) -> list[int]:
    return [event.step for event in events]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    before = time.time()
    log.write(3, Tag.TRAIN, {"loss": 0.5, "note": "Übung\n2"})
    (event,) = log.read()
    assert (event.step, event.tag, event.values) == (3, Tag.TRAIN, {"loss": 0.5, "note": "Übung\n2"})
    assert before <= event.time <= time.time()
    assert (tmp_path / "events.jsonl").read_text(encoding="utf-8").count("\n") == 1


def test_each_line_is_on_disk_before_the_next(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for written in range(1, 4):
        log.write(written, Tag.TRAIN, {})
        assert len((tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()) == written


def test_no_file_is_an_empty_log(tmp_path: Path) -> None:
    assert EventLog(tmp_path / "events.jsonl").read() == []
    assert list(JsonLinesFile(tmp_path / "samples.jsonl").rows()) == []
    assert list(tmp_path.iterdir()) == []


def test_tags_select(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for step, tag in [(0, Tag.START), (1, Tag.TRAIN), (1, Tag.EVAL), (2, Tag.TRAIN), (2, Tag.END)]:
        log.write(step, tag, {})
    assert steps(log.read(Tag.TRAIN)) == [1, 2]
    assert [event.tag for event in log.read(Tag.EVAL, Tag.END)] == [Tag.EVAL, Tag.END]
    assert len(log.read()) == 5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_at_any_depth(tmp_path: Path, value: float) -> None:
    """JSON knows no NaN; a reader in another language would refuse the whole line."""
    file = JsonLinesFile(tmp_path / "rows.jsonl")
    file.append({"a": value, "b": [1.0, value], "c": {"d": (value, 2)}, "e": 0.25})
    text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert text == '{"a": null, "b": [1.0, null], "c": {"d": [null, 2]}, "e": 0.25}\n'


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write(1, Tag.TRAIN, {"loss": 2.0})
    log.write(2, Tag.TRAIN, {"loss": 1.0})
    content = log.path.read_bytes()
    log.path.write_bytes(content[:-9])
    assert steps(log.read()) == [1]


def test_writing_after_a_torn_line_loses_nothing_else(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write(1, Tag.TRAIN, {})
    with log.path.open("ab") as file:
        file.write(b'{"step": 2, "tag": "tra')
    log.write(3, Tag.TRAIN, {})
    log.write(4, Tag.TRAIN, {})
    assert steps(log.read()) == [1, 3, 4]


def test_a_line_torn_inside_a_character(tmp_path: Path) -> None:
    file = JsonLinesFile(tmp_path / "rows.jsonl")
    file.append({"text": "one"})
    file.append({"text": "é"})
    content = file.path.read_bytes()
    file.path.write_bytes(content[: content.index("é".encode()) + 1])
    assert list(file.rows()) == [{"text": "one"}]


def test_a_last_line_without_its_newline_counts(tmp_path: Path) -> None:
    """Only the newline is missing: the row is whole, and the next one does not swallow it."""
    file = JsonLinesFile(tmp_path / "rows.jsonl")
    file.append({"n": 1})
    file.path.write_bytes(file.path.read_bytes()[:-1])
    assert list(file.rows()) == [{"n": 1}]
    file.append({"n": 2})
    assert list(file.rows()) == [{"n": 1}, {"n": 2}]


def test_half_a_surrogate_pair_does_not_stop_a_run(tmp_path: Path) -> None:
    """`"\\ud83d"` is valid JSON and no valid UTF-8; a run must not end because a sample holds one."""
    file = JsonLinesFile(tmp_path / "samples.jsonl")
    file.append({"text": "a\ud83db"})
    file.append({"text": "c"})
    first, second = file.rows()
    assert first["text"].startswith("a")
    assert first["text"].endswith("b")
    assert second == {"text": "c"}


def test_steps_after_the_checkpoint_are_abandoned_when_a_run_continues(tmp_path: Path) -> None:
    """Killed at step 7 with a checkpoint at 5: steps 6 and 7 are done again, and only the second ones count."""
    log = EventLog(tmp_path / "events.jsonl")
    log.write(0, Tag.START, {"from_step": 0})
    for step in range(1, 8):
        log.write(step, Tag.TRAIN, {"loss": 10.0 + step})
        if step == 5:
            log.write(5, Tag.CHECKPOINT, {})
    log.write(5, Tag.START, {"from_step": 5})
    for step in range(6, 9):
        log.write(step, Tag.TRAIN, {"loss": 20.0 + step})
    assert [event.values["loss"] for event in log.read(Tag.TRAIN)] == [11, 12, 13, 14, 15, 26, 27, 28]
    assert steps(log.read(Tag.CHECKPOINT)) == [5]
    assert steps(log.read(Tag.START)) == [0, 5]
    assert len(log.path.read_text(encoding="utf-8").splitlines()) == 13


def test_a_folder_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(OutputError) as caught:
        EventLog(tmp_path / "events.jsonl").write(1, Tag.TRAIN, {})
    assert str(caught.value).startswith(f"{tmp_path / 'events.jsonl'}: cannot append (")
    assert str(caught.value).endswith("then continue the run with --resume")


def test_a_full_disk_is_an_output_error() -> None:
    """`/dev/full` refuses every byte, as a full disk does."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OutputError, match="No space left on device"):
        JsonLinesFile(full).append({"n": 1})


@given(st.lists(json_rows, max_size=5))
def test_any_rows_round_trip(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = JsonLinesFile(Path(folder) / "rows.jsonl")
        for row in rows:
            file.append(row)
        assert list(file.rows()) == rows
        lines = file.path.read_bytes().splitlines() if rows else []
        assert [json.loads(line) for line in lines] == rows


@given(st.lists(json_rows, min_size=1, max_size=4), st.data())
def test_cut_anywhere_whole_rows_are_read_and_writing_goes_on(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    """However many bytes a kill leaves, the rows whose bytes are all there are read, and no others."""
    with tempfile.TemporaryDirectory() as folder:
        file = JsonLinesFile(Path(folder) / "rows.jsonl")
        ends: list[int] = []
        for row in rows:
            file.append(row)
            ends.append(file.path.stat().st_size - 1)  # without the newline the row is whole already
        left = data.draw(st.integers(0, ends[-1] + 1), label="bytes left")
        file.path.write_bytes(file.path.read_bytes()[:left])
        whole = [row for row, end in zip(rows, ends, strict=True) if end <= left]
        assert list(file.rows()) == whole
        file.append({"after": True})
        assert list(file.rows()) == [*whole, {"after": True}]


@given(st.lists(st.tuples(st.integers(1, 6), st.floats(0.0, 1.0)), min_size=1, max_size=5))
def test_a_run_killed_again_and_again_reads_like_an_uninterrupted_one(attempts: list[tuple[int, float]]) -> None:
    """Each attempt does some steps, then dies and continues at a checkpoint somewhere before its end."""
    with tempfile.TemporaryDirectory() as folder:
        log = EventLog(Path(folder) / "events.jsonl")
        start, last = 0, 0
        for attempt, (length, kept) in enumerate(attempts):
            log.write(start, Tag.START, {"from_step": start})
            last = start + length
            for step in range(start + 1, last + 1):
                log.write(step, Tag.TRAIN, {"attempt": attempt})
            start = int(kept * last)
        events = log.read(Tag.TRAIN)
        assert steps(events) == list(range(1, last + 1))
        assert [event.values["attempt"] for event in events] == sorted(event.values["attempt"] for event in events)
