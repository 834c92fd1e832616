"""The server that commands talk to. Not here: what they ask of it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tutelage.client import Client


def connect() -> "Client":
    """The client of the server that TUTELAGE_URL names, or the one on this machine."""
    from tutelage.client import Client

    return Client()
