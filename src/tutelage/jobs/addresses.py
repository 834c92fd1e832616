"""Addresses of databases, stores and servers as errors may show them. Not here: opening them."""

import re

HIDDEN = "***"
_USER = re.compile(r"^([a-z0-9+.-]*:?//|(?=[^/@]*:))(?s:.*)@", re.IGNORECASE)
"""Up to the last @, as passwords may hold one; also where the `://` is mistyped, or there is none."""
_OPTIONS = re.compile(r"((?:\?|password)[^=]*=)(?s:.*)", re.IGNORECASE)
_NO_PORT = re.compile(r"(//[^/@:]*:)(?!\d+(?:/|$))[^/]+")
"""Of an address whose host was left out: a password stands in its place."""


def shown(address: str) -> str:
    """The address without user, password and options, however it is mistyped."""
    return _NO_PORT.sub(rf"\1{HIDDEN}", _OPTIONS.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}@", address)))
