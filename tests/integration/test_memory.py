"""The calculator of memory against the peak of small runs on this machine's CPU."""

import sys
from typing import Any

import pytest

from benchmarks.memory import measured_and_estimated
from tutelage.config.memory import ModelShape

TOLERANCE = 0.15
PLAIN = ModelShape(4096, 512, 8, 1408, 8, 8, 64, tied=False)
GROUPED = ModelShape(16_384, 384, 6, 1024, 6, 2, 64, tied=True)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux keeps the peak of a process")
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (PLAIN, {"loss": "sft"}),
        (GROUPED, {"loss": "dft", "is_peft": False, "gradient_accumulation_steps": 2}),
    ],
    ids=["adapter", "all weights"],
)
def test_the_peak_of_a_small_run(shape: ModelShape, options: dict[str, Any]) -> None:
    measured, estimated = measured_and_estimated(shape, options)
    assert measured > 400  # MiB: what a process has besides is a few
    assert estimated == pytest.approx(measured, rel=TOLERANCE)
