"""Words of which an option takes one."""

from collections.abc import Iterable

from tutelage.errors import ConfigError, nearest


def require_known(option: str, given: str, known: Iterable[str]) -> None:
    """Raises ConfigError that names the nearest word and all others."""
    words = list(known)
    if given not in words:
        raise ConfigError(f"{option} {given[:80]}: is none{nearest(given, words)}; one of {', '.join(words)}")
