"""Judges, asked over real HTTP: order, parallelism, time limits, every failure, and what is found before a run."""

import asyncio
import sys
import time
from collections.abc import Iterator

import pytest

from tests.judge_server import KEY, JudgeServer, judge_server, refused_url
from tutelage.errors import ConfigError
from tutelage.scoring import Judge, Reply

LIMIT = 0.3
MARGIN = 2.0
"""Seconds by which a busy machine may be late; a server here would go on for 30."""


def asking(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def server() -> Iterator[JudgeServer]:
    with judge_server() as running:
        yield running


def only_reply(server: JudgeServer, model: str, **options: float) -> Reply:
    before = len(server.requests)
    (reply,) = Judge(model, server.url, **options).ask(asking("a"))  # pyright: ignore[reportArgumentType]
    assert len(server.requests) == before + 1, "a call was tried again"
    return reply


def test_replies_keep_the_order_and_parallelism_is_reached_and_bounded():
    """A request is answered once three are there, so less than three at once would fail, and more are counted."""
    with judge_server(together=3) as server:
        texts = [str(number) for number in range(12)]
        replies = Judge("together", server.url, parallelism=3).ask(asking(*texts))
        assert [(reply.text, reply.error) for reply in replies] == [(f"said {text}", None) for text in texts]
        assert (server.most_active, len(server.requests)) == (3, 12)


def test_a_slow_answer_within_the_limit_is_an_answer(server: JudgeServer):
    reply = only_reply(server, "slow", timeout=10.0)
    assert (reply.text, reply.error) == ("said a", None)
    assert 0.3 <= reply.seconds < 10.0


def test_what_is_sent(server: JudgeServer, monkeypatch: pytest.MonkeyPatch):
    Judge("right", server.url).ask(asking("a"))
    sent = server.requests[-1]
    assert sent["messages"] == [{"role": "user", "content": "a"}]
    assert (sent["temperature"], sent["max_tokens"], sent["authorization"]) == (0.0, 256, "Bearer none")

    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    Judge("right", temperature=None, max_tokens=None).ask(asking("a"))
    sent = server.requests[-1]
    assert ("temperature" in sent, "max_tokens" in sent, sent["authorization"]) == (
        False,
        False,
        "Bearer from-environment",
    )
    Judge("right", api_key="given").ask(asking("a"))
    assert server.requests[-1]["authorization"] == "Bearer given"


def test_no_questions(server: JudgeServer):
    before = len(server.requests)
    assert Judge("right", server.url).ask([]) == []
    assert len(server.requests) == before


def test_inside_a_running_event_loop(server: JudgeServer):
    """As in a notebook."""

    async def notebook() -> list[Reply]:
        judge = Judge("right", server.url)
        judge.check()
        return judge.ask(asking("a", "b"))

    assert [reply.text for reply in asyncio.run(notebook())] == ["said a", "said b"]


@pytest.mark.parametrize("model", ["hangs", "drips"])
def test_a_call_ends_in_time_whatever_the_server_does(server: JudgeServer, model: str):
    """The server that drips sends a byte every 0.02 s, which no limit on a single read would notice."""
    start = time.monotonic()
    reply = only_reply(server, model, timeout=LIMIT)
    assert (reply.text, reply.error) == (None, "no answer within 0.3 s")
    assert LIMIT <= reply.seconds <= time.monotonic() - start < LIMIT + MARGIN


def test_waiting_for_a_place_is_not_counted(server: JudgeServer):
    """Three calls one after another need three limits; counted from the start, two of them would have no time."""
    replies = Judge("hangs", server.url, timeout=0.1, parallelism=1).ask(asking("a", "b", "c"))
    assert [reply.error for reply in replies] == ["no answer within 0.1 s"] * 3
    assert all(0.1 <= reply.seconds < 0.1 + MARGIN for reply in replies)


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("busy", "status 429: Rate limit reached"),
        ("broken", "status 500: boom"),
        ("picky", "status 400: Unsupported parameter: 'max_tokens'"),
        ("refused", "status 403: No access for you"),
        ("nobody", "status 404: The model `nobody` does not exist"),
        ("not json", "the answer is not JSON: Expecting value: line 1 column 14 (char 13)"),
        ("page", "no choices[0].message.content in the answer"),
        ("other shape", "no choices[0].message.content in the answer"),
        ("no choices", "no choices[0].message.content in the answer"),
        ("list", "no choices[0].message.content in the answer"),
        ("no text", "no text in the answer"),
    ],
)
def test_a_failed_call_says_why_and_is_not_tried_again(server: JudgeServer, model: str, error: str):
    reply = only_reply(server, model)
    assert (reply.text, reply.error) == (None, error)


def test_a_connection_that_is_reset_or_refused(server: JudgeServer):
    error = only_reply(server, "resets").error
    assert error is not None
    assert error.startswith("the connection broke: ")
    (reply,) = Judge("right", refused_url()).ask(asking("a"))
    assert reply.text is None
    assert reply.error is not None
    assert reply.error.startswith("no connection: ")


def test_a_key_that_is_refused_is_not_repeated():
    """The server's message holds it."""
    with judge_server(key=KEY) as server:
        good, bad = Judge("right", server.url, KEY), Judge("right", server.url, "wrong-key")
        assert [reply.text for reply in good.ask(asking("a", "b"))] == ["said a", "said b"]
        (reply,) = bad.ask(asking("a"))
        assert reply.error == "status 401: Incorrect key: Bearer …"
        assert "wrong-key" not in repr(bad)


@pytest.mark.parametrize("model", ["right", "busy", "broken", "hangs", "drips", "resets", "no text"])
def test_check_passes_what_may_be_better_later(server: JudgeServer, model: str):
    before = len(server.requests)
    Judge(model, server.url, timeout=LIMIT).check()
    assert len(server.requests) == before + 1


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            "rihgt",
            "URL has no model 'rihgt'; did you mean 'right'?; choose one of right, together, refused, eighty, tires",
        ),
        (
            "refused",
            "URL refuses the key (status 403: No access for you); set OPENAI_API_KEY to a valid one",
        ),
        (
            "picky",
            "URL refuses the request (status 400: Unsupported parameter: 'max_tokens'); choose another model, or set "
            "judge_temperature or judge_max_tokens to what it takes",
        ),
        (
            "page",
            "URL does not answer as OpenAI's API does: no choices[0].message.content in the answer; mend "
            "judge_base_url, which mostly ends in /v1",
        ),
    ],
)
def test_check_refuses_what_would_fail_every_call(server: JudgeServer, model: str, sentence: str):
    with pytest.raises(ConfigError) as caught:
        Judge(model, server.url).check()
    assert str(caught.value) == "judge: " + sentence.replace("URL", server.url)


def test_check_asks_for_a_key_before_the_network():
    with pytest.raises(ConfigError, match="needs a key; set OPENAI_API_KEY, or judge_base_url to another server"):
        Judge("gpt-4.1-mini").check()


def test_check_refuses_a_wrong_key_address_and_port(server: JudgeServer):
    with judge_server(key=KEY) as strict:
        Judge("right", strict.url, KEY).check()
        with pytest.raises(
            ConfigError, match=r"refuses the key \(status 401: Incorrect key: Bearer …\); set OPENAI_API"
        ):
            Judge("right", strict.url, "wrong-key").check()
    nowhere = refused_url()
    with pytest.raises(ConfigError, match=rf"nothing answers at {nowhere} \(\[Errno .*\); start the server or mend"):
        Judge("right", nowhere).check()
    without_v1 = server.url.removesuffix("/v1")
    with pytest.raises(
        ConfigError, match=r"does not find the model 'right' \(status 404: .*mend judge_base_url, which mostly"
    ):
        Judge("right", without_v1).check()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"model": ""}, "the model's name is empty"),
        ({"base_url": "localhost:8000/v1"}, "base_url is 'localhost:8000/v1'; begin it with http"),
        ({"timeout": 0.0}, "timeout is 0.0; give a number of seconds above 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"parallelism": 0}, "parallelism is 0; give 1 or more"),
    ],
)
def test_judges_that_cannot_work(options: dict[str, object], sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        Judge(**{"model": "m"} | options)  # pyright: ignore[reportArgumentType]


def test_without_the_package(server: JudgeServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    for call in (Judge("right", server.url).check, lambda: Judge("right", server.url).ask(asking("a"))):
        with pytest.raises(ConfigError, match=r"need the package openai .*; pip install 'tutelage\[judge\]'"):
            call()
