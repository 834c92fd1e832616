"""Wakes those who wait for something to happen, in this process at once; what another process did is seen by looking
again now and then, which every waiter does anyway."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Generator

LOOK_AGAIN_SECONDS = 1.0


class Listener:
    """Hears of one topic. Forget what was heard, look, then wait: what happens in between is heard."""

    def __init__(self) -> None:
        self._heard = asyncio.Event()

    def forget(self) -> None:
        """Before looking."""
        self._heard.clear()

    def hear(self) -> None:
        """In the event loop."""
        self._heard.set()

    async def wait(self, seconds: float = LOOK_AGAIN_SECONDS) -> None:
        """Until something happened since `forget`, or it is time to look again."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._heard.wait(), seconds)


class Notices:
    """Told from any thread, listened to in the event loop. A topic is any text, such as `log run-…`."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[Listener]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closing = False

    def open(self) -> None:
        """Called in the event loop that listens."""
        self._loop = asyncio.get_running_loop()
        self.closing = False

    def close(self) -> None:
        """Wake everybody: the server is about to stop. From any thread."""
        self.closing = True
        self._in_loop(None)

    def tell(self, topic: str) -> None:
        """Something happened. From any thread."""
        self._in_loop(topic)

    @contextlib.contextmanager
    def listening(self, topic: str) -> Generator[Listener, None, None]:
        """Hear of a topic, and of the end, for as long as this lasts."""
        listener = Listener()
        self._listeners[topic].add(listener)
        try:
            yield listener
        finally:
            self._listeners[topic].discard(listener)
            if not self._listeners[topic]:
                del self._listeners[topic]

    def _in_loop(self, topic: str | None) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits
                self._loop.call_soon_threadsafe(self._wake, topic)

    def _wake(self, topic: str | None) -> None:
        topics = list(self._listeners) if topic is None else [topic]
        for one in topics:
            for listener in self._listeners.get(one, ()):
                listener.hear()
