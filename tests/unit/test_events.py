"""A run's events: what is read back, whatever happened while they were written."""

import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import OutputError
from tutelage.events import Event, EventLog, Tag


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
    assert list(tmp_path.iterdir()) == []


def test_tags_select(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for step, tag in [(0, Tag.START), (1, Tag.TRAIN), (1, Tag.EVAL), (2, Tag.TRAIN), (2, Tag.END)]:
        log.write(step, tag, {})
    assert steps(log.read(Tag.TRAIN)) == [1, 2]
    assert [event.tag for event in log.read(Tag.EVAL, Tag.END)] == [Tag.EVAL, Tag.END]
    assert len(log.read()) == 5


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
