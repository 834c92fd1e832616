"""Clocks, peak memory and the machine's own rates; and how a worker answers. Not here: what is measured (`cases`).

python -m benchmarks.measure      # the machine's rates, as a line of JSON
"""

import argparse
import ctypes
import gc
import json
import signal
import statistics
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIB = 2**20


def seconds(work: Callable[[], Any]) -> float:
    """How long it takes, once."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def alternating(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, taking turns, so that a machine that slows down slows all of them."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            found[name].append(seconds(work))
    return found


class PeakMemory:
    """Peak resident memory of this process above what it holds now, in MiB.

    Linux keeps the peak, and forgets it when a 5 is written to `clear_refs`. Freed memory is given back first: a peak
    inside of it would not be seen.
    """

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")

    def mib(self) -> float:
        """The peak so far, above the beginning."""
        return (_status("VmHWM") - self._before) / MIB


def _status(field: str, process: str = "self") -> int:
    """Bytes of a field of /proc/…/status."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    return 0  # a process that is ending has none


class AnonymousPeak:
    """Peak of the memory that this process and its children hold and no file backs, in MiB above the beginning.

    Pages of a mapped file can be dropped at any time, so they are no need for memory. Linux keeps no peak of the
    others: a thread looks every 20 ms. `processes`: the most that held some at once.
    """

    processes = 0

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        self._before = self._peak = self._now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _now(self) -> int:
        total, processes, waiting = 0, 0, ["self"]
        while waiting:
            process = waiting.pop()
            try:
                held = _status("RssAnon", process) + _status("RssShmem", process)
                total, processes = total + held, processes + (held > 0)
                for task in Path(f"/proc/{process}/task").iterdir():
                    waiting += (task / "children").read_text().split()
            except OSError:
                continue  # it has just ended
        self.processes = max(self.processes, processes)
        return total

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.look()

    def look(self) -> None:
        """At what is held now."""
        self._peak = max(self._peak, self._now())

    def mib(self) -> float:
        """Stop looking; the peak above the beginning."""
        self._ended.set()
        self._thread.join()
        return (self._peak - self._before) / MIB


def gemm_rate(size: int = 2048, repeats: int = 15) -> float:
    """FLOP/s of a square float32 product into memory that is there."""
    import torch

    left, right, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    torch.mm(left, right, out=out)
    times = [seconds(lambda: torch.mm(left, right, out=out)) for _ in range(repeats)]
    return 2 * size**3 / statistics.median(times)


def bandwidth(mib: int = 512, repeats: int = 15) -> float:
    """Bytes a second of a matrix that is read once for one vector: what sampling one token for one row does.

    One block of its rows after the other: as fast as a sum over it, and up to three times as fast as `torch.mv`.
    """
    import torch

    blocks_BNK, vector_1K = torch.randn(mib * MIB // 4 // 64 // 1024, 64, 1024), torch.randn(1, 1024)
    columns_BK1, out_BN1 = vector_1K.expand(len(blocks_BNK), 1, 1024).mT, torch.empty(len(blocks_BNK), 64, 1)
    torch.bmm(blocks_BNK, columns_BK1, out=out_BN1)
    times = [seconds(lambda: torch.bmm(blocks_BNK, columns_BK1, out=out_BN1)) for _ in range(repeats)]
    return mib * MIB / statistics.median(times)


def answer(measure: Callable[..., dict[str, list[float]]], *numbers: str) -> None:
    """A worker: measure one side, print the samples as the last line. numbers: options beside the side."""
    warnings.simplefilter("ignore")  # of other packages
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", required=True)
    for name in numbers:
        parser.add_argument(f"--{name}", type=int, required=True)
    print("\n" + json.dumps(measure(**vars(parser.parse_args()))), flush=True)


if __name__ == "__main__":
    print(json.dumps({"gemm_gflops": gemm_rate() / 1e9, "bandwidth_gb": bandwidth() / 1e9}))
