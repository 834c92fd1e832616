"""What a machine is said to have."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tutelage.worker import hardware
from tutelage.worker.hardware import Gpus, HardwareError, find_gpus, hub_models, parsed, require_same, short_name


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100"),
        ("NVIDIA H100 NVL", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100"),
    ],
)
def test_names_as_jobs_ask_for_them(name: str, short: str) -> None:
    """Left: as nvidia-smi prints them. Right: as `allowed_hardware` and price lists of clouds have them."""
    assert short_name(name) == short


def test_gpus_of_a_table() -> None:
    """Two of 81,920 MiB are 160 GiB."""
    gpus = parsed("NVIDIA A100-SXM4-80GB, 81920\nNVIDIA A100-SXM4-80GB, 81920\n")
    assert (gpus.hardware, gpus.vram_gb, len(gpus.names)) == ("2x A100", 160.0, 2)


def test_no_gpu_is_cpu() -> None:
    assert parsed("").hardware == "cpu"


def driver(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program in the place of nvidia-smi."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_driver_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, "echo 'Tesla T4, 15360'", monkeypatch)
    assert find_gpus() == Gpus(("T4",), 15.0)


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("0,3", Gpus(("T4", "T4"), 30.0)),
        ("GPU-8f1c", Gpus(("T4",), 15.0)),
        ("", Gpus()),
        ("-1", Gpus()),
    ],
)
def test_gpus_that_were_given_to_others_are_not_the_workers(
    visible: str, found: Gpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program prints one line for each of the devices that it was asked for, by number or by id."""
    asked = 'for one in $(echo "$3" | sed "s/^--id=//; s/,/ /g"); do echo "Tesla T4, 15360"; done'
    driver(tmp_path, asked, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_gpus() == found


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("sleep 60", "nvidia-smi gave no answer within 0.1 s"),
        ("echo 'NVIDIA-SMI has failed'; exit 9", "nvidia-smi ends with 9: NVIDIA-SMI has failed"),
        ("echo 'Tesla T4, [N/A]'", r"nvidia-smi says 'Tesla T4, \[N/A\]' of a GPU"),
        ("echo 'Tesla T4, 15360'", "2x T4 became 1x T4"),
    ],
)
def test_a_machine_that_is_not_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, sentence: str
) -> None:
    driver(tmp_path, script, monkeypatch)
    monkeypatch.setattr(hardware, "ASK_SECONDS", 0.1 if "sleep" in script else 10.0)
    with pytest.raises(HardwareError, match=sentence):
        require_same(Gpus(("T4", "T4"), 30.0))


def test_a_driver_that_outlives_sigkill_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process sleeps in the kernel and cannot be ended: here, by nobody who tries to."""
    stuck: list[subprocess.Popen[str]] = []
    driver(tmp_path, "exec sleep 60", monkeypatch)
    monkeypatch.setattr(hardware, "ASK_SECONDS", 0.1)
    monkeypatch.setattr(hardware, "KILL_SECONDS", 0.1)
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: stuck.append(process))
    began = time.monotonic()
    with pytest.raises(HardwareError, match="restart the machine"):
        find_gpus()
    assert time.monotonic() - began < 30
    (process,) = stuck
    assert process.poll() is None
    process.terminate()
    process.wait()


def test_models_in_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with a configuration: the other one has only begun to be fetched."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for revision in ("1", "2"):
        snapshot = tmp_path / "models--Qwen--Qwen2.5-0.5B" / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").touch()
    (tmp_path / "models--half--fetched" / "snapshots").mkdir(parents=True)
    assert hub_models() == ["Qwen/Qwen2.5-0.5B"]
