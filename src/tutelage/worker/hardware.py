"""What this machine has: GPUs as their driver names them, free disk, models that need not be fetched."""

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tutelage.errors import TutelageError
from tutelage.jobs.requirements import hardware_of

ASK_SECONDS = 30.0
"""A driver that takes longer is stuck."""
KILL_SECONDS = 1.0
"""How long the end of a process that was killed is waited for; the child of a stuck driver has none."""
_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
_NO_DEVICE = ("", "-1", "NoDevFiles")
"""What `CUDA_VISIBLE_DEVICES` says for none."""
_MAKER = re.compile(r"^(?:NVIDIA\s+)?(?:GeForce\s+|Tesla\s+|Quadro\s+)?", re.IGNORECASE)
_FORM = re.compile(r"[- ](?:SXM\d?|PCIe|NVL|HBM\d\w?|\d+GB)\b.*$", re.IGNORECASE)


class HardwareError(TutelageError):
    """The GPUs do not answer, or are not those there were."""


@dataclass(frozen=True)
class Gpus:
    """names: of each GPU, without its maker. vram_gb: over all of them."""

    names: tuple[str, ...] = ()
    vram_gb: float = 0.0

    @property
    def hardware(self) -> str:
        """`2x A100`, or `cpu`. Of GPUs of several kinds the most frequent name: a job runs on all of them."""
        if not self.names:
            return "cpu"
        return hardware_of(f"{len(self.names)}x {Counter(self.names).most_common(1)[0][0]}")


def find_gpus() -> Gpus:
    """The GPUs of this machine, none where there is no driver. Raises HardwareError where it does not answer.

    Of those only the ones in `CUDA_VISIBLE_DEVICES`, where that is set: who started the worker, as Ray does, gave the
    others to somebody else, and what the worker starts does not see them.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shutil.which(_QUERY[0]) is None or (visible is not None and visible.strip() in _NO_DEVICE):
        return Gpus()
    query = _QUERY if visible is None else (*_QUERY, f"--id={visible.strip()}")
    code, output, errors = _asked(query)
    if code != 0:
        if "no devices were found" in output.lower():
            return Gpus()
        said = (output + errors).strip().splitlines() or ["it says nothing"]
        raise HardwareError(f"nvidia-smi ends with {code}: {said[0][:200]}; look at the driver")
    return parsed(output)


def _asked(query: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, output and errors. `subprocess.run` would wait for the end of a process that it has killed, and one
    that hangs in the driver has none."""
    try:
        process = subprocess.Popen(
            query,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise HardwareError(f"nvidia-smi cannot be started ({error.strerror}); look at its installation") from error
    try:
        output, errors = process.communicate(timeout=ASK_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(KILL_SECONDS)
        raise HardwareError(f"nvidia-smi gave no answer within {ASK_SECONDS:g} s; restart the machine") from None
    finally:
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    return process.returncode, output, errors


def parsed(table: str) -> Gpus:
    """From lines such as `NVIDIA A100-SXM4-80GB, 81920` (MiB). Raises HardwareError."""
    names: list[str] = []
    megabytes = 0.0
    for line in table.strip().splitlines():
        name, _, memory = line.rpartition(",")
        try:
            megabytes += float(memory)
        except ValueError:
            raise HardwareError(f"nvidia-smi says '{line[:200]}' of a GPU; look at the driver") from None
        names.append(short_name(name))
    return Gpus(tuple(names), round(megabytes / 1024, 1))


def short_name(name: str) -> str:
    """`A100` for `NVIDIA A100-SXM4-80GB`, as jobs ask for it."""
    return _FORM.sub("", _MAKER.sub("", name.strip())).strip() or name.strip()


def require_same(before: Gpus) -> None:
    """Raises HardwareError unless the GPUs answer and are those there were."""
    after = find_gpus()
    if after.names != before.names:
        raise HardwareError(
            f"{before.hardware} became {after.hardware}: a GPU is lost or came back; start the worker again"
        )


def disk_free_gb(folder: Path) -> float | None:
    """Gigabytes that can be written there; None where that cannot be told."""
    try:
        return round(shutil.disk_usage(folder).free / 1e9, 1)
    except OSError:
        return None


def hub_models() -> list[str]:
    """Names of the models in the cache of the Hugging Face hub."""
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    try:
        folders = sorted(cache.glob("models--*/snapshots/*/config.json"))
    except OSError:
        return []
    names = [folder.parts[-4].removeprefix("models--").replace("--", "/") for folder in folders]
    return list(dict.fromkeys(names))
