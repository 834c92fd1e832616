"""Logs of runs by byte offset: whatever way the bytes come in, what is read is what was printed."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.databases import Scene, in_threads, new_organization, new_run_id
from tutelage.errors import JobError, NotFoundError
from tutelage.jobs.database import Database
from tutelage.jobs.run_logs import LogPart, RunLogs
from tutelage.jobs.status import JobStatus


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(database)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.binary(min_size=1, max_size=60),
    parts=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), max_size=12),
    limit=st.integers(1, 80),
    begin=st.integers(-80, 80),
)
def test_parts_in_any_order_are_the_plain_text(
    scene: Scene, text: bytes, parts: list[tuple[int, int]], limit: int, begin: int
) -> None:
    """Repeats, overlaps and gaps: a part counts as far as it goes on where the log ends; the model is a byte string."""
    logs, run = RunLogs(scene.database), scene.running(new_run_id()).run_id
    there = 0
    for start, length in parts:
        part = text[start : start + length]
        if start <= there:
            there = max(there, start + len(part))
        assert logs.append(scene.organization, run, start, part) == there
    assert logs.append(scene.organization, run, there, text[there:]) == len(text)
    assert logs.append(scene.organization, run, len(text) + 1, b"behind a gap") == len(text)
    assert logs.read(scene.organization, run) == LogPart(0, text)
    wanted = min(begin, len(text)) if begin >= 0 else max(0, len(text) + begin)
    assert logs.read(scene.organization, run, begin, limit) == LogPart(wanted, text[wanted : wanted + limit])
    read, at = b"", 0
    while part := logs.read(scene.organization, run, at, limit).content:
        read, at = read + part, at + len(part)
    assert read == text
    scene.queue.finish(scene.organization, run, JobStatus.COMPLETED)
    assert logs.read(scene.organization, run).content == text  # stays when the run is over


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=25), begin=st.integers(-200, 300))
def test_a_log_beyond_its_limit_drops_its_oldest_parts(scene: Scene, lengths: list[int], begin: int) -> None:
    """At most 40 bytes are kept; what is kept is the end, and reading says how many bytes are missing before it."""
    text = bytes(number % 251 for number in range(sum(lengths)))
    logs, run = RunLogs(scene.database, max_bytes=40), scene.running(new_run_id()).run_id
    at = 0
    for length in lengths:
        at = logs.append(scene.organization, run, at, text[at : at + length])
    kept = logs.read(scene.organization, run)
    assert kept.content == text[kept.start :]
    assert kept.dropped == kept.start
    assert kept.end == len(text)
    assert len(kept.content) <= 40
    assert kept.start == 0 or len(kept.content) > 0  # never all of it
    assert kept.start == 0 or len(text) > 40
    wanted = begin if begin >= 0 else max(0, len(text) + begin)
    part = logs.read(scene.organization, run, begin)
    assert part.start == min(max(wanted, kept.start), len(text))
    assert part.content == text[part.start :]
    assert part.dropped == max(0, kept.start - wanted)
    scene.queue.finish(scene.organization, run, JobStatus.COMPLETED)


def test_one_log_sent_by_four_threads_at_once(scene: Scene) -> None:
    """As a worker that asked again because an answer was late: everybody goes on where the answer says."""
    logs, run = RunLogs(scene.database), scene.running().run_id
    text = bytes(range(256)) * 4

    def send() -> int:
        at = 0
        while at < len(text):
            at = logs.append(scene.organization, run, at, text[at : at + 100])
        return at

    assert in_threads([send] * 4) == [len(text)] * 4
    assert logs.read(scene.organization, run).content == text


def test_what_is_refused(scene: Scene) -> None:
    logs, run = RunLogs(scene.database), scene.running().run_id
    with pytest.raises(JobError, match=f"log of {run}: offset -1 is none; begin at 0"):
        logs.append(scene.organization, run, -1, b"x")
    other = new_organization(scene.database)
    calls: list[Any] = [
        lambda: logs.append(other, run, 0, b"x"),
        lambda: logs.read(other, run),
        lambda: logs.read(scene.organization, "run-0"),
    ]
    for call in calls:
        with pytest.raises(NotFoundError):
            call()
    assert logs.append(scene.organization, run, 10**30, b"x") == 0  # a gap, however wide
    assert logs.read(scene.organization, run, 10**30) == logs.read(scene.organization, run, -(10**30))
