"""Server-sent events, as WHATWG's HTML standard has them in section 9.2."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.client import sent_events as module
from tutelage.client.errors import ServerError
from tutelage.client.sent_events import SentEvent, sent_events

STREAM = (
    b": ping\n\n"
    b'event: log\nid: 7\ndata: "a\xe2\x80\xa8b"\n\n'  # a line separator: no end of a line here
    b"data:one\r\ndata: two\r\n\r\n"
    b"id: 9\n\n"
    b"event: end\ndata: null\n\n"
    b"event: torn\ndata: "
)
EVENTS = [SentEvent("log", "7", '"a\u2028b"'), SentEvent("message", "", "one\ntwo"), SentEvent("end", "", "null")]


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_events_are_the_same_however_they_arrive(cuts: list[int]) -> None:
    """Pings, fields without data and what was torn off are no events; several lines of data are one value."""
    places = [0, *sorted(cuts), len(STREAM)]
    parts = [STREAM[start:end] for start, end in itertools.pairwise(places)]
    assert list(sent_events(parts)) == EVENTS


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_SENT_EVENT", 1000)
    with pytest.raises(ServerError, match="an event of more than 1000 bytes"):
        list(sent_events(b"data: " + b"x" * 100 for _ in range(20)))
