"""HTTP to one server: where it is, who asks, trying again, streams. Not here: what is asked for.

Connection errors, timeouts and 5xx are tried again with growing pauses, 4xx never are, but for 408: what was sent has
not arrived.
"""

import os
import random
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

import httpx

from tutelage import __version__
from tutelage.client.errors import ConnectionFailed, ServerError, no_answer, refusal
from tutelage.client.sent_events import SentEvent, sent_events
from tutelage.errors import ConfigError, JobError, TutelageError
from tutelage.jobs.plain_json import cleaned

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE = "TUTELAGE_URL"
TOKEN_VARIABLES = ("TUTELAGE_API_KEY", "OPENWEIGHTS_API_KEY")

RETRY_SECONDS = 60.0
"""How long a call is tried again, unless it is told otherwise: a server may be restarted meanwhile."""
FIRST_CONTACT_SECONDS = 3.0
"""The same while nothing at that address ever answered: the server is not there, or the address is wrong."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0
TIMEOUT = httpx.Timeout(60.0, connect=10.0)
UPLOAD_TIMEOUT = httpx.Timeout(600.0, connect=10.0)
"""After the last byte of a large file the server still reads its rows."""

Result = TypeVar("Result")


class _Again(Exception):
    """An attempt that may be tried again. arrived: the server may have done what it was asked."""

    def __init__(self, failure: TutelageError, *, after: float = 0.0, arrived: bool = True) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.after = after
        self.arrived = arrived


def path_of(*parts: str) -> str:
    """`/api/jobs/ftjob-1` of its parts, each quoted. Raises JobError for a part that is no name."""
    for part in parts:
        if part in ("", ".", ".."):
            raise JobError(f"'{part}' is no id; give the whole one, such as ftjob-0123456789ab")
    return "/" + "/".join(quote(part, safe=":") for part in parts)


class Transport:
    """Calls to a server.

    base_url: unset, `TUTELAGE_URL` or this machine. token: unset, `TUTELAGE_API_KEY` or `OPENWEIGHTS_API_KEY`.
    patience: seconds for which a call that meets connection errors is tried again, from the first on; unset,
    RETRY_SECONDS, and less while nothing answered yet. sleep: how to pause; what it raises ends the call. May be used
    by several threads at once.
    """

    def __init__(
        self,
        base_url: str | None = None,
        token: str | None = None,
        *,
        patience: float | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.url = _checked_url(base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL)
        self.token = token or next((os.environ[name] for name in TOKEN_VARIABLES if os.environ.get(name)), None)
        self.patience = patience
        self._sleep = sleep
        self._reached = False
        self._ahead = timedelta()
        headers = {"User-Agent": f"tutelage/{__version__}"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {_checked_token(self.token)}"
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT, trust_env=not self.is_loopback)
        # Scripts that were written for OpenWeights close nothing.
        self.close = weakref.finalize(self, self._client.close)
        """Close the connections."""

    def __repr__(self) -> str:
        return f"Transport({self.address!r})"

    @property
    def address(self) -> str:
        """The server's, without a password that may be in it."""
        return str(self.url.copy_with(username=None, password=None)).rstrip("/")

    @property
    def is_loopback(self) -> bool:
        """The server is on this machine: a proxy for the world outside has no business in between."""
        return self.url.host in ("localhost", "::1") or self.url.host.startswith("127.")

    def now(self) -> datetime:
        """What the server's clock says, by its last answer, in UTC: this machine's may be wrong."""
        return datetime.now(timezone.utc) + self._ahead

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        patience: float | None = None,
        once: bool = False,
    ) -> Any:
        """The JSON of the answer; None where there is none. json: NaN and infinities go out as null.

        patience: see the class. once: never send again what may have arrived. Raises ConnectionFailed and ServerError
        after the last attempt, AccessError, NotFoundError, FencedError, DataError and JobError at once.
        """
        given = {name: value for name, value in (params or {}).items() if value is not None}
        body = {"content": content} if json is None else {"json": cleaned(json, f"{method} {path}")}

        def attempt() -> Any:
            return self._json(self._send(method, path, params=given, **body))

        return self._persist(attempt, patience, once)

    def upload(
        self, path: str, file: BinaryIO, filename: str, fields: Mapping[str, str], *, patience: float | None = None
    ) -> Any:
        """POST a form with a file, read from disk while it is sent. file: seekable. Raises as `request`."""

        def attempt() -> Any:
            file.seek(0)
            form = {"file": (filename, file, "application/octet-stream")}
            return self._json(self._send("POST", path, data=dict(fields), files=form, timeout=UPLOAD_TIMEOUT))

        return self._persist(attempt, patience, once=False)

    def bytes_of(
        self,
        path: str,
        take: Callable[[Iterator[bytes]], Result],
        *,
        params: Mapping[str, Any] | None = None,
        patience: float | None = None,
    ) -> Result:
        """What `take` makes of the parts of an answer's body; it is called again from the start if the connection is
        lost meanwhile. Raises as `request`."""

        def attempt() -> Result:
            with self._open(path, params or {}) as response:
                return take(response.iter_bytes())

        return self._persist(attempt, patience, once=False)

    def part(self, path: str, params: Mapping[str, Any]) -> tuple[bytes, httpx.Headers]:
        """Body and headers of an answer. Raises as `request`."""

        def attempt() -> tuple[bytes, httpx.Headers]:
            response = self._send("GET", path, params=params)
            return response.content, response.headers

        return self._persist(attempt, None, once=False)

    def follow(self, path: str, params: Mapping[str, Any], cursor: str, start: int) -> Iterator[SentEvent]:
        """Server-sent events, until one is called `end`; a lost connection is taken up behind the last one.

        cursor: the parameter that says where to begin. Raises as `request`.
        """
        state = {"at": start}
        pause = FIRST_PAUSE_SECONDS
        while True:
            # A connection is an attempt of its own: each has the whole of the patience.
            stream = self._persist(lambda: self._opened_stream(path, {**params, cursor: state["at"]}), None, once=False)
            try:
                for event in stream:
                    if event.id.isdigit():
                        state["at"] = int(event.id)
                        pause = FIRST_PAUSE_SECONDS
                    yield event
                    if event.name == "end":
                        return
            except _Again:
                pass  # whether the server comes back is seen above
            finally:
                stream.close()
            self._sleep(pause)  # no end was sent: the server is about to stop
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _opened_stream(self, path: str, params: Mapping[str, Any]) -> Generator[SentEvent, None, None]:
        """The events of one connection, which stands already."""

        def events() -> Generator[SentEvent, None, None]:
            with self._open(path, params, headers={"Accept": "text/event-stream"}) as response:
                yield SentEvent("open", "", "")
                yield from sent_events(response.iter_bytes())

        stream = events()
        next(stream)
        return stream

    @contextmanager
    def _open(
        self, path: str, params: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        with (
            self._failures(),
            self._client.stream("GET", self._address_of(path), params=params, headers=headers) as response,
        ):
            self._arrived(response)
            if not response.is_success:
                response.read()
                self._refuse(response)
            yield response

    def _send(self, method: str, path: str, **parts: Any) -> httpx.Response:
        with self._failures():
            response = self._client.request(method, self._address_of(path), **parts)
        self._arrived(response)
        if not response.is_success:
            self._refuse(response)
        return response

    def _arrived(self, response: httpx.Response) -> None:
        self._reached = True
        with suppress(ValueError):  # no date, or one that cannot be read
            said = parsedate_to_datetime(response.headers.get("date", ""))
            self._ahead = said.replace(tzinfo=timezone.utc) - datetime.now(timezone.utc)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except httpx.LocalProtocolError as error:
            raise JobError(f"{self.address}: the request cannot be sent ({type(error).__name__})") from None
        except httpx.TransportError as error:
            unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
            raise _Again(no_answer(error, self.address), arrived=not unsent) from error
        except httpx.DecodingError as error:
            raise ServerError(f"{self.address}: an answer cannot be read ({error}); update tutelage") from error

    def _refuse(self, response: httpx.Response) -> None:
        """Raise what an answer other than success means."""
        failure = refusal(response, self.address)
        if response.status_code >= 500 or response.status_code == 408:
            arrived = response.status_code not in (408, 503)
            raise _Again(failure, after=_retry_after(response), arrived=arrived) from None
        raise failure

    def _json(self, response: httpx.Response) -> Any:
        if response.status_code == 204 or not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise ServerError(
                f"{self.address}: answers to {response.request.url.path} with something that is no JSON; "
                "check base_url and TUTELAGE_URL"
            ) from error

    def _address_of(self, path: str) -> str:
        return f"{str(self.url).rstrip('/')}{path}"

    def _persist(self, attempt: Callable[[], Result], patience: float | None, once: bool) -> Result:
        """The result of the first attempt that succeeds. Raises what the last one met when the time is over.

        It is counted from the first failure: a large file may have been on its way for longer when that comes. Where
        nothing answered yet, nothing is on its way.
        """
        begun, failing_since = time.monotonic(), None
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return attempt()
            except _Again as again:
                if once and again.arrived:
                    raise again.failure from again.__cause__
                wait = max(again.after, pause * random.uniform(0.5, 1.0))
                now = time.monotonic()
                failing_since = now if failing_since is None else failing_since
                since = failing_since if self._reached else begun
                if now - since + wait > self._time_for(again, patience):
                    raise again.failure from again.__cause__
            self._sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _time_for(self, again: _Again, patience: float | None) -> float:
        patience = self.patience if patience is None else patience
        if patience is not None:
            return patience
        unknown = isinstance(again.failure, ConnectionFailed) and not self._reached
        return FIRST_CONTACT_SECONDS if unknown else RETRY_SECONDS


def _retry_after(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    return min(float(value), LONGEST_PAUSE_SECONDS) if value.isascii() and value.isdigit() else 0.0


def _checked_url(address: str) -> httpx.URL:
    # What stands before an @ may be a password, also where the rest is no address; the parser's words may hold it too.
    shown = f"…{address[address.rindex('@') :]}"[:100] if "@" in address else address[:100]
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as error:
        why = "" if "@" in address else f" ({error})"
        raise ConfigError(f"base_url: '{shown}' is no address{why}; write {DEFAULT_URL}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"base_url: '{shown}' is no address of a server; write it as {DEFAULT_URL}")
    return url.copy_with(query=None, fragment=None)


def _checked_token(token: str) -> str:
    """Raises ConfigError that does not show it."""
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("the token has characters that no token has, such as a line's end; copy it again")
    return token
