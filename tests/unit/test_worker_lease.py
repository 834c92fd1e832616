"""Keeping a run while the server answers late, not at all, or with bad news."""

import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from tests.served import until
from tutelage.client.errors import AccessError, ConnectionFailed
from tutelage.client.worker_api import WorkerApi
from tutelage.errors import FencedError, NotFoundError, TutelageError
from tutelage.jobs.records import Renewal
from tutelage.worker.guard import now
from tutelage.worker.lease import LeaseKeeper, kept_for
from tutelage.worker.signals import RunSignals

LEASE = 0.4


class Server:
    """Answers each heartbeat with what its function gives for the number of it."""

    def __init__(self, answer: Callable[[int], Renewal]) -> None:
        self.answer = answer
        self.beats = 0

    def heartbeat(self, run_id: str, *, patience: float) -> Renewal:
        self.beats += 1
        return self.answer(self.beats)


class Kept:
    def __init__(self, server: Server) -> None:
        self.signals = RunSignals()
        self.missed: list[TutelageError] = []
        self.keeper = LeaseKeeper(
            cast("WorkerApi", server),
            "run-1",
            self.signals,
            asked_at=now(),
            lease_seconds=LEASE,
            every=0.02,
            reached=lambda: None,
            missed=self.missed.append,
        )


@pytest.fixture
def kept() -> Iterator[Any]:
    begun: list[Kept] = []

    def begin(answer: Callable[[int], Renewal]) -> Kept:
        begun.append(Kept(Server(answer)))
        return begun[-1]

    yield begin
    for one in begun:
        one.keeper.stop()


def renewed(number: int) -> Renewal:
    return Renewal(False, LEASE)


def test_what_is_left_for_killing() -> None:
    """A fifth, and never more than three seconds: of 30 s a process has 27."""
    assert (kept_for(30.0), kept_for(1.0)) == (27.0, 0.8)


def test_heartbeats_keep_a_run(kept: Any) -> None:
    over = now() + 2 * LEASE
    one = kept(renewed)
    until(lambda: now() > over, "two leases")
    assert one.keeper.is_held


def test_a_heartbeat_without_an_answer_does_not_hold_up_the_next(kept: Any) -> None:
    """The first one hangs on a dead connection for longer than the lease."""
    answered = threading.Event()

    def answer(number: int) -> Renewal:
        if number == 1:
            answered.wait(30)
        return renewed(number)

    over = now() + 2 * LEASE
    one = kept(answer)
    until(lambda: now() > over, "two leases")
    assert one.keeper.is_held
    answered.set()


def test_a_server_that_is_away_ends_the_lease_and_nothing_else(kept: Any) -> None:
    """A process may not run any more; whether the run is given up is for the server to say."""

    def answer(number: int) -> Renewal:
        raise ConnectionFailed("no server answers")

    one = kept(answer)
    until(lambda: not one.keeper.is_held, "the end of the lease")
    assert one.missed
    assert not one.signals.interrupted


@pytest.mark.parametrize("error", [FencedError("the run is failed"), NotFoundError("there is no such run")])
def test_a_run_that_was_given_up(kept: Any, error: TutelageError) -> None:
    def answer(number: int) -> Renewal:
        if number == 2:
            raise error
        return renewed(number)

    one = kept(answer)
    until(lambda: one.signals.fenced, "the news")
    assert not one.signals.canceled


def test_a_run_that_is_canceled(kept: Any) -> None:
    """The lease is kept: its process is still to be stopped, and its end to be told."""
    one = kept(lambda number: Renewal(number >= 2, LEASE))
    until(lambda: one.signals.canceled, "the news")
    over = now() + 2 * LEASE
    until(lambda: now() > over, "two leases")
    assert one.keeper.is_held


def test_a_token_that_is_not_taken_any_more(kept: Any) -> None:
    def answer(number: int) -> Renewal:
        raise AccessError("the token was revoked")

    one = kept(answer)
    until(lambda: one.signals.broken, "the sentence")
    assert one.signals.broken == "the lease cannot be renewed (the token was revoked)"
