"""Times, sizes and numbers as people read them, and logs as a terminal would have shown them. Not here: HTML."""

import json
import math
import re
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

MINUTE, HOUR, DAY = 60, 3600, 86400
TERMINAL_COMMANDS = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
"""Colours, movements of the cursor and titles, as programs send them to terminals."""


def ago(moment: datetime, now: datetime) -> str:
    """`3 min ago`; a date where it is more than a month. `static/page.js` has the same rule."""
    seconds = (now - moment).total_seconds()
    if seconds < 5:
        return "just now"
    for limit, unit, name in ((MINUTE, 1, "s"), (HOUR, MINUTE, "min"), (2 * DAY, HOUR, "h"), (30 * DAY, DAY, "d")):
        if seconds < limit:
            return f"{int(seconds // unit)} {name} ago"
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%d")


def absolute(moment: datetime) -> str:
    """To the second, in UTC."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 05 s`, `2 h 14 min`, `3 d 4 h`."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE:02d} s"
    if whole < DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE:02d} min"
    return f"{whole // DAY} d {whole % DAY // HOUR} h"


def size(count: float) -> str:
    """Bytes, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def number(value: Any) -> str:
    """Four digits of a float; whole numbers in full; everything else as JSON or text."""
    if isinstance(value, bool) or value is None or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def dollars(value: float) -> str:
    """US dollars; to a hundredth of a cent where it is less than one."""
    return f"${value:,.2f}" if value >= 0.01 or value == 0 else f"${value:.4f}"


def pretty(value: Any) -> str:
    """JSON on several lines."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def part(text: str) -> str:
    """A part of a path or of a query in a link: everything that could mean something else is encoded."""
    return quote(text, safe="")


def cell(text: str) -> str:
    """A text for a table that a spreadsheet may open: what would begin a formula is marked as text."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def shown_log(text: str) -> str:
    """What a terminal would show: of a line that was written over (`\\r`) its newest state, and no commands.

    `static/log.js` does the same to what follows.
    """
    text = TERMINAL_COMMANDS.sub("", text).replace("\r\n", "\n")
    return "\n".join(_newest(line) for line in text.split("\n"))


def _newest(line: str) -> str:
    # A progress bar often leaves `\r` behind what it has drawn.
    parts = [piece for piece in line.split("\r") if piece]
    return parts[-1] if parts else ""
