"""How long the command and the import take, and that neither loads torch."""

import json
import subprocess
import sys

from benchmarks.limits import Rates
from benchmarks.measure import answer, seconds
from benchmarks.table import Row, Samples, Target

TITLE = "Startup"
SIDES = ("ours",)
ONCE = SIDES
REPEATS = 5
COMMANDS = {
    "tutelage --help": ["-m", "tutelage", "--help"],
    "import tutelage": ["-c", "import tutelage"],
    "python alone": ["-c", "pass"],
}
HELP = """
from tutelage.cli import main
sys.argv = ["tutelage", "--help"]
try:
    main()
except SystemExit:
    pass
"""
WORKS = {"tutelage --help": HELP, "import tutelage": "import tutelage"}
LOADED = """
import sys
{work}
import json
print("\\n" + json.dumps([name for name in ("torch", "transformers", "numpy") if name in sys.modules]))
"""


def measure(side: str) -> dict[str, list[float]]:
    """Seconds of whole processes, and how many heavy packages each has loaded at its end."""
    found: dict[str, list[float]] = {}
    for name, arguments in COMMANDS.items():

        def work(arguments: list[str] = arguments) -> None:
            subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)

        work()  # files are in memory after it
        found[name] = [seconds(work) for _ in range(REPEATS)]
    for name, source in WORKS.items():
        found[f"heavy packages of {name}"] = [float(len(heavy_packages(source)))]
    return found


def heavy_packages(work: str) -> list[str]:
    """Which of torch, transformers and numpy a process has loaded when it has done this work, whatever that prints."""
    command = [sys.executable, "-c", LOADED.format(work=work)]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(printed.splitlines()[-1])


def rows(samples: Samples, rates: Rates) -> list[Row]:
    """Against Python that does nothing, which is the limit."""
    ours = samples.get("ours", {})
    alone = ours.get("python alone", ())
    limit = sorted(alone)[len(alone) // 2] if alone else None
    found: list[Row] = []
    for name in WORKS:
        heavy = ours.get(f"heavy packages of {name}", ())
        found += [
            Row(name, "s", ours.get(name, ()), alone, "python -c pass", limit, Target(0.5, of="value")),
            Row(f"{name}: torch, transformers, numpy loaded", "packages", heavy, target=Target(0, of="value")),
        ]
    return found


if __name__ == "__main__":
    answer(measure)
