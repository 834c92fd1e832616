"""The command line in a process where accelerate shards over gloo what it shards over GPUs alone.

accelerate 1.15 turns FSDP into plain data parallelism where there is no accelerator, and says nothing. With this:

    accelerate launch --config_file examples/accelerate/fsdp.yaml --num_processes 2 -m tests.fsdp_on_cpu train CONFIG

`SHARDS_FILE` in the run's folder says, for each process a file of its own, what of each parameter it holds.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from torch.distributed.tensor import DTensor

from tutelage.cli.app import main
from tutelage.training.run_trainer import RunTrainer

SHARDS_FILE = "shards-{rank}.json"


def shard_on_cpu() -> None:
    """What `AcceleratorState` does for several GPUs, for several processes on a CPU."""
    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type is DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init


def record_shards() -> None:
    """After each step, of every parameter: whether it is sharded, and its numbers here and in all."""
    original = RunTrainer.log

    def log(self: RunTrainer, *args: Any, **kwargs: Any) -> None:
        found = {
            name: {"sharded": isinstance(parameter, DTensor), "here": _local(parameter), "all": parameter.numel()}
            for name, parameter in self.model.named_parameters()
        }
        file = SHARDS_FILE.format(rank=torch.distributed.get_rank())
        (Path(self.args.output_dir or "") / file).write_text(json.dumps(found), encoding="utf-8")
        original(self, *args, **kwargs)

    RunTrainer.log = log


def _local(parameter: torch.Tensor) -> int:
    return parameter.to_local().numel() if isinstance(parameter, DTensor) else parameter.numel()


if __name__ == "__main__":
    assert os.environ.get("ACCELERATE_USE_FSDP") == "true"
    shard_on_cpu()
    record_shards()
    main()
