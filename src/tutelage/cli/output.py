"""How commands print: tables for people, JSON with `--json`."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from enum import Enum
from typing import Annotated, Any

import typer

UNFOLDED = 100_000
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to standard output.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print a JSON object a line: time, text.")]


def print_json(value: Any) -> None:
    """Records and plain values as indented JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def print_part(text: str, *, beside: bool = False) -> None:
    """A part of a text as it comes. beside: to standard error, where standard output is for something else."""
    stream = sys.stderr if beside else sys.stdout
    stream.write(text)
    stream.flush()


def saying(as_json: bool) -> Callable[[str], None]:
    """Prints what a command that runs on has to say, a line each."""

    def say(text: str) -> None:
        if as_json:
            text = json.dumps({"time": datetime.now(timezone.utc).isoformat(), "text": text}, ensure_ascii=False)
        print(text, flush=True)

    return say


def print_table(titles: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Rows under titles, or the sentence that says what to do where there are none."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(value)) for value in row))
    if table.row_count:
        # What goes into a file or a pipe is for programs: an id is never folded there.
        console = Console()
        (console if console.is_terminal else Console(width=UNFOLDED)).print(table)
    else:
        print(empty)


def shown(value: Any) -> str:
    """A value in a cell: times as how long ago they were."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return ago(value)
    if isinstance(value, list | tuple):
        return ", ".join(shown(item) for item in value)
    return str(value.value if isinstance(value, Enum) else value)


def ago(moment: datetime) -> str:
    """Such as `5 min ago`."""
    seconds = (datetime.now(timezone.utc) - moment).total_seconds()
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {name} ago"
    return f"{max(0, int(seconds))} s ago"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    return str(value)
