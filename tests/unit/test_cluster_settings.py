"""The file of `tutelage cluster` as docs/cluster.md has it: its examples are taken, its tables name all there is."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tutelage.cluster.settings import ClusterSettings, HardwareEntry

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_of_the_page_are_taken(text: str) -> None:
    content: dict[str, Any] = yaml.safe_load(text)
    settings = ClusterSettings.model_validate(content)
    assert settings.launcher in ("ray", "runpod")
    assert [entry.name for entry in settings.hardware] == [line["name"] for line in content["hardware"]]


def test_the_table_has_every_key_with_its_default() -> None:
    table = PAGE.partition("## Keys")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"\| `(\w+)` \| ([^|]+) \|", table))
    assert rows.keys() == ClusterSettings.model_fields.keys()
    for name, cell in rows.items():
        field = ClusterSettings.model_fields[name]
        if cell == "required":
            assert field.is_required(), name
        elif re.fullmatch(r"[\d, ]+", cell):
            given = [float(number) for number in cell.split(",")]
            default = field.default
            assert given == (default if isinstance(default, list) else [default]), name
        else:
            assert not field.is_required(), name


def test_the_table_says_what_a_line_of_the_catalogue_may_have() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| `hardware` |"))
    assert set(re.findall(r"`(\w+)`", row)) - {"hardware"} == HardwareEntry.model_fields.keys()
