"""What stands in the place of a secret, and which secrets can be masked at all."""

from collections.abc import Iterable

MASK = "***"
SHORTEST = 6
"""Shorter secrets are not masked: they would take half of every text with them."""


def maskable(secrets: Iterable[str]) -> list[str]:
    """Those that are masked, longest first, so that one that holds another goes as a whole."""
    return sorted({secret for secret in secrets if len(secret) >= SHORTEST}, key=lambda secret: (-len(secret), secret))
