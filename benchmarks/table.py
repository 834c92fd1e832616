"""Rows of the bench: medians, ratios, spreads, targets; as JSON, in the terminal and in docs/performance.md.

Not here: how anything is measured.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""What the workers of a case measured: side to measure to one number a repetition, over all rounds."""

BEGIN, END = "<!-- table: python -m benchmarks --write-docs -->", "<!-- end of table -->"
COLUMNS = ("what", "unit", "ours", "peer", "ratio", "limit", "× limit", "target", "met")


@dataclass(frozen=True)
class Target:
    """A bound on the ratio ours/peer, or on our own value; `at_least` turns ≤ into ≥."""

    bound: float
    of: str = "ratio"
    at_least: bool = False

    def met(self, value: float | None) -> bool:
        """Whether the value keeps the bound; nothing measured keeps none."""
        if value is None:
            return False
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{self.of} {'≥' if self.at_least else '≤'} {self.bound:g}"


@dataclass(frozen=True)
class Row:
    """One line: the same work by us and by a peer, in `unit`. limit: what the machine allows, in the same unit.

    A side without samples has failed, or was not asked: then there is no ratio, and a target is not met.
    """

    name: str
    unit: str
    ours: Sequence[float]
    peer: Sequence[float] = ()
    peer_name: str = ""
    limit: float | None = None
    target: Target | None = None

    @property
    def ratio(self) -> float | None:
        """Median of ours over median of the peer's."""
        if not self.ours or not self.peer or not statistics.median(self.peer):
            return None
        return statistics.median(self.ours) / statistics.median(self.peer)

    @property
    def ratio_spread(self) -> tuple[float, float] | None:
        """Our lowest over the peer's highest, and our highest over the peer's lowest: the ratio is between them."""
        if self.ratio is None or not min(self.peer):
            return None
        return min(self.ours) / max(self.peer), max(self.ours) / min(self.peer)

    @property
    def met(self) -> bool | None:
        """Whether the target is; None without one."""
        if self.target is None:
            return None
        return self.target.met(self.ratio if self.target.of == "ratio" else _median(self.ours))

    def as_json(self) -> dict[str, Any]:
        """For benchmarks/results/latest.json."""
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": _median(self.ours),
            "ours_spread": _spread(self.ours),
            "peer": _median(self.peer),
            "peer_name": self.peer_name or None,
            "peer_spread": _spread(self.peer),
            "ratio": self.ratio,
            "ratio_spread": self.ratio_spread and list(self.ratio_spread),
            "limit": self.limit,
            "target": str(self.target) if self.target else None,
            "met": self.met,
        }


def _median(samples: Sequence[float]) -> float | None:
    return statistics.median(samples) if samples else None


def _spread(samples: Sequence[float]) -> list[float] | None:
    return [min(samples), max(samples)] if samples else None


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of a row of latest.json, in the order of `COLUMNS`."""
    ours = "failed" if row["ours"] is None else _with_spread(row["ours"], row["ours_spread"])
    if row["peer"] is not None:
        peer = f"{_with_spread(row['peer'], row['peer_spread'])} {row['peer_name']}"
    else:
        peer = f"failed: {row['peer_name']}" if row["peer_name"] else ""
    limit = row["limit"]
    return (
        row["name"],
        row["unit"],
        ours,
        peer,
        "" if row["ratio"] is None else _with_spread(row["ratio"], row["ratio_spread"], "{:.2f}"),
        "" if limit is None else _number(limit),
        "" if not limit or row["ours"] is None else f"{row['ours'] / limit:.2f}",
        row["target"] or "",
        {True: "yes", False: "no", None: ""}[row["met"]],
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _with_spread(value: float, spread: Sequence[float] | None, form: str | None = None) -> str:
    def text(number: float) -> str:
        return form.format(number) if form else _number(number)

    if not spread or text(spread[0]) == text(spread[1]):
        return text(value)
    return f"{text(value)} ({text(spread[0])}–{text(spread[1])})"


def show(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The table in the terminal."""
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("what", "unit", "target", "met") else "right")
    for row in rows:
        table.add_row(*cells(row), style="red" if row["met"] is False else None)
    console.print(table)


def markdown(content: Mapping[str, Any]) -> str:
    """latest.json as a table for the docs, a heading a case."""
    machine, lines = content["machine"], []
    for case in dict.fromkeys(row["case"] for row in content["rows"]):
        rows = [row for row in content["rows"] if row["case"] == case]
        lines += ["", f"### {rows[0]['title']}", ""]
        if rows[0]["date"] != machine["date"]:
            lines += [f"Measured on {rows[0]['date']}.", ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    gemm, memory = machine["gemm_gflops"], machine["bandwidth_gb"]
    packages = ", ".join(f"{name} {machine[name.lower()]}" for name in ("Python", "torch", "transformers", "TRL"))
    what = (
        f"{machine['date']}, {machine['processor']}, {machine['cores']} cores, {packages}; {machine['minutes']:.1f} "
        f"minutes in all. Products: {gemm['start']:.0f} GFLOP/s at the start, {gemm['end']:.0f} at the end; memory: "
        f"{memory['start']:.1f} GB/s, then {memory['end']:.1f}."
    )
    return "\n".join([what, *lines, ""])


def with_table(page: str, content: Mapping[str, Any]) -> str:
    """The page with a new table between its two marks. Raises ValueError where they are missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks '{BEGIN}' or, after it, '{END}'; put both where the table is to stand")
    return f"{before}{begin}\n{markdown(content)}\n{end}{after}"
