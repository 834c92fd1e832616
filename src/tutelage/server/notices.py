"""Wakes those who wait for something to happen, in this process at once; what another process did is seen by looking
again now and then, which every waiter does anyway."""

import asyncio
from collections import defaultdict

LOOK_AGAIN_SECONDS = 1.0


class Notices:
    """Told from any thread, waited for in the event loop. A topic is any text, such as `log run-…`."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closing = False

    def open(self) -> None:
        """Called in the event loop that waits."""
        self._loop = asyncio.get_running_loop()
        self.closing = False

    def close(self) -> None:
        """Wake everybody: the server is about to stop."""
        self.closing = True
        for events in list(self._waiting.values()):
            for event in events:
                event.set()

    def tell(self, topic: str) -> None:
        """Something happened. From any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, topic)

    async def wait(self, topic: str, seconds: float = LOOK_AGAIN_SECONDS) -> None:
        """Until something may have happened: it was told, or it is time to look again."""
        if self.closing:
            return
        event = asyncio.Event()
        self._waiting[topic].add(event)
        try:
            await asyncio.wait_for(event.wait(), seconds)
        except asyncio.TimeoutError:
            pass
        finally:
            self._waiting[topic].discard(event)
            if not self._waiting[topic]:
                del self._waiting[topic]

    def _wake(self, topic: str) -> None:
        for event in self._waiting.get(topic, ()):
            event.set()
