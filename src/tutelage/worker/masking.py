"""Secrets do not come back in what a job prints, not even where one is cut in two by two reads."""

import re
from collections.abc import Iterable

from tutelage.jobs.masks import MASK, maskable


class StreamMasker:
    """Replaces secrets in bytes that come part by part. Together, the parts are what the whole would give.

    What could be the beginning of a secret is held back until it is known.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = [secret.encode(errors="replace") for secret in maskable(secrets)]
        # Longest first, as `maskable` gives them: of two that begin at one place the longer is taken.
        self._any = re.compile(b"|".join(re.escape(secret) for secret in self._secrets)) if self._secrets else None
        self._held = b""

    def feed(self, content: bytes) -> bytes:
        """What can be given out now that this has come."""
        if self._any is None:
            return content
        text = self._held + content
        given, at = bytearray(), 0
        while True:
            unsure = self._beginning_of_a_secret(text, at)
            match = self._any.search(text, at)
            if match is None or match.start() >= unsure:
                given += text[at:unsure]
                self._held = text[unsure:]
                return bytes(given)
            given += text[at : match.start()] + MASK.encode()
            at = match.end()

    def end(self) -> bytes:
        """What was held back: nothing comes any more."""
        held, self._held = self._held, b""
        return held if self._any is None else self._any.sub(MASK.encode(), held)

    def _beginning_of_a_secret(self, text: bytes, at: int) -> int:
        """The first place from `at` on where the text ends as some secret begins; its length where there is none."""
        return len(text) - max(_overlap(text[max(at, len(text) - len(one) + 1) :], one) for one in self._secrets)


def _overlap(end: bytes, secret: bytes) -> int:
    """Length of the longest beginning of `secret` that `end`, which is shorter, ends with."""
    first = secret[:1]
    at = end.find(first)
    while at >= 0:
        # The first bytes alone tell almost always, however long the secret is.
        if end.startswith(secret[: min(16, len(end) - at)], at) and secret.startswith(end[at:]):
            return len(end) - at
        at = end.find(first, at + 1)
    return 0
