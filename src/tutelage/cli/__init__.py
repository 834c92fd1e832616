"""The command line: parse, call, print. What the commands do lives in the packages they call."""

from tutelage.cli.app import main

__all__ = ["main"]
