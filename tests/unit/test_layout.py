"""What must exist together: objectives, options, pages, examples, pins. Each failure says what is missing."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from tutelage.config import OBJECTIVES, Direction, SamplingCallback, TrainingConfig, load_config
from tutelage.experiments import load_experiment

ROOT = Path(__file__).resolve().parents[2]
OTHER_FILES = ("experiment.yaml", "suite.yaml", "questions.yaml", "stages.yaml")
"""YAML in examples that is no config of a run."""
LAUNCHES = ROOT / "examples" / "accelerate"
"""Configs of `accelerate launch`, which `test_training_distribution.py` reads."""
EXAMPLES = sorted(
    path for path in (ROOT / "examples").rglob("*.yaml") if path.name not in OTHER_FILES and path.parent != LAUNCHES
)
EXPERIMENTS = sorted((ROOT / "examples").rglob("experiment.yaml"))
"""Tutelage's own. Axolotl's is a `.yml`, as is usual there, and runs in `tests/real_axolotl`."""
BUILT_IN = "built in"
"""What the table says of a default that is too long for it."""


def table_rows(page: str, *, first_section: bool = False) -> dict[str, list[str]]:
    """Rows of a page's tables whose first cell is `` `name` ``: name to the other cells."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rows: dict[str, list[str]] = {}
    for line in (text.partition("\n## ")[0] if first_section else text).splitlines():
        if match := re.fullmatch(r"\| `([^`]+)` \|(.*)\|", line):
            name, cells = match.group(1), [cell.strip() for cell in match.group(2).split("|")]
            assert name not in rows, f"docs/{page}: '{name}' has two rows; remove one"
            rows[name] = cells
    return rows


def described_default(model: type[BaseModel], field: str) -> Any:
    default = model.model_fields[field].get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "unset"
    return BUILT_IN if isinstance(default, str) and "\n" in default else default


def options() -> dict[str, Any]:
    """Every public option, nested ones too, as docs/configuration.md names them, with its default."""
    sources: list[tuple[str, type[BaseModel]]] = [
        ("", TrainingConfig),
        ("monitoring_directions.<name>.", Direction),
        ("sampling_callbacks[].", SamplingCallback),
        *((f"{name}_", objective) for name, objective in OBJECTIVES.items()),
    ]
    return {
        f"{prefix}{field}": described_default(model, field) for prefix, model in sources for field in model.model_fields
    }


def default_in_cell(cell: str) -> Any:
    return yaml.safe_load(cell.strip("`")) if cell.startswith("`") else cell


def test_configuration_page_names_every_option_and_no_other() -> None:
    rows, known = set(table_rows("configuration.md")), set(options())
    assert known - rows == set(), "options without a row in docs/configuration.md"
    assert rows - known == set(), "rows of docs/configuration.md that are no options"


@pytest.mark.parametrize(("name", "default"), options().items())
def test_configuration_page_states_the_default(name: str, default: Any) -> None:
    cell, meaning = table_rows("configuration.md")[name]
    stated = default_in_cell(cell)
    assert (stated, type(stated) is bool) == (default, type(default) is bool)
    assert meaning, f"docs/configuration.md: '{name}' has no meaning"


def test_objectives_page_has_a_row_for_each_objective_and_no_other() -> None:
    assert set(table_rows("objectives.md", first_section=True)) == set(OBJECTIVES)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_is_trained_by_a_test(objective: str) -> None:
    """Tests of configs and pages don't count: somewhere a loss or a run of it must be computed."""
    ours = {"test_layout.py", "test_config_options.py", "test_config_loading.py"}
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path.name not in ours]
    named = re.compile(rf"""["']{objective}["']|\b{objective}_loss\b""")
    found = [path.name for path in tests if named.search(path.read_text(encoding="utf-8"))]
    assert found, f"no test under tests/ mentions '{objective}'; add one with numbers derived by hand"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_has_an_example(objective: str) -> None:
    losses = {load_config(path).loss for path in EXAMPLES}
    assert objective in losses, f"no config in examples/ has 'loss: {objective}'"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_are_valid_and_their_data_is_there(path: Path) -> None:
    config = load_config(path)
    assert path.stem == config.loss
    assert config.training_file.is_file(), f"{path}: {config.training_file} is missing"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.parent.name)
def test_example_experiments_can_be_read(path: Path) -> None:
    """With every config, evaluation and file they name."""
    assert load_experiment(path).runs


def test_architecture_page_names_every_package() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    tree = page.partition("\nsrc/tutelage/\n")[2].partition("\ntests/\n")[0]
    named = set(re.findall(r"^  (\w+)/ ", tree, flags=re.MULTILINE))
    packages = {path.parent.name for path in (ROOT / "src/tutelage").glob("*/__init__.py")}
    assert named == packages


@pytest.mark.parametrize(
    "module", ["tutelage", "tutelage.config", "tutelage.events", "tutelage.errors", "tutelage.scoring", "tutelage.cli"]
)
def test_light_modules_load_no_torch(module: str) -> None:
    """A laptop that only writes and submits configs does not install it, and `tutelage --help` stays quick."""
    heavy = ("torch", "transformers", "peft", "trl", "accelerate", "numpy", "matplotlib", "openai")
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def installed_requirements() -> dict[str, str]:
    """Every package that `pip install '.[dev]'` brings here, with its version."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    queue = [Requirement("tutelage[dev]")]
    while queue:
        requirement = queue.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        try:
            package = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        found[canonicalize_name(requirement.name)] = package.version.partition("+")[0]
        for text in package.requires or []:
            needed = Requirement(text)
            extras = ("", *requirement.extras)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                queue.append(needed)
    return found


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="constraints.txt is for Python 3.11")
def test_constraints_pin_what_is_tested() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    installed = {name: version for name, version in installed_requirements().items() if name != "tutelage"}
    loose = {name: version for name, version in installed.items() if pins.get(name) != version}
    assert loose == {}, "these are installed and not pinned at their version in constraints.txt"


def test_torch_is_pinned_to_the_one_that_brings_no_gigabytes() -> None:
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
