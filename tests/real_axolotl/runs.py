"""Runs `axolotl train` and reads what it leaves: its log, its metrics, its weights."""

import json
import os
import re
import signal
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file
from torch import Tensor

from tests.real_axolotl.configs import STEPS, Spec, evaluated

ROOT = Path(__file__).resolve().parents[2]

CHUNKED = "dft: the loss is computed through the chunked head; [batch, sequence, vocabulary] is not held"
"""What the log says where no logits of a whole batch are held."""

TIME_LIMIT = 300.0
"""Seconds. A run takes about 20; one that hangs must not hold up all."""


@dataclass(frozen=True)
class AxolotlRun:
    """A finished process. Metrics are Axolotl's own, unrounded, from the state that it saves beside the weights."""

    output: Path
    exit_code: int
    log: str

    @cached_property
    def state(self) -> dict[str, Any]:
        """The trainer's, as the newest checkpoint has it."""
        assert self.exit_code == 0, self.log[-3000:]
        states = sorted(self.output.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
        return json.loads(states[-1].read_text(encoding="utf-8"))

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was logged, in order."""
        return self.state["log_history"]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """What was logged of each training step."""
        return [entry for entry in self.history if "loss" in entry]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        return [entry for entry in self.history if "eval_loss" in entry]

    def values(self, name: str) -> list[float]:
        """One metric over the training steps."""
        return [entry[name] for entry in self.steps]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors that the run saved at its end: the model, or the adapter."""
        return load_file(next(self.output.glob("*model.safetensors")))

    @property
    def dft_lines(self) -> list[str]:
        """What the plugin said in the log."""
        lines = re.findall(r"\[axolotl\.dft\](?: \[RANK:\d+\])? (.*)", self.log)
        return [re.sub(r"\x1b\[\d*m", "", line).strip() for line in lines]


class Axolotl:
    """Axolotl's own environment, and the folders that runs get on their path."""

    def __init__(self, python: Path, distributions: dict[str, Path], models: dict[str, Path], workplace: Path) -> None:
        self.python = python
        self._distributions = distributions
        self._models = models
        self._workplace = workplace

    def run(self, name: str, spec: Spec, data: Path) -> AxolotlRun:
        """Train, wait for the end, whatever it is."""
        output = self._workplace / re.sub(r"\W+", "-", name)
        output.mkdir()
        config = self._config(spec, data, output)
        path = output / "config.yml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [str(self.python.with_name("axolotl")), "train", str(path)]
        if spec.processes > 1:
            # `--standalone` picks a free port: two such runs may be under way.
            command += ["--launcher", "torchrun", "--", "--nproc_per_node", str(spec.processes), "--standalone"]
        else:
            command += ["--launcher", "python"]
        return self._finish(command, output, self._environment(spec))

    def _config(self, spec: Spec, data: Path, output: Path) -> dict[str, Any]:
        places = {
            "base_model": str(self._models[spec.model]),
            "dataset_prepared_path": str(output / "prepared"),
            "output_dir": str(output),
        }
        if spec.example:
            example = yaml.safe_load((ROOT / "examples/axolotl/dft.yml").read_text(encoding="utf-8"))
            example["datasets"][0]["path"] = str(ROOT / example["datasets"][0]["path"])
            return {**example, **places, **spec.config}
        if spec.data == "pairs":
            dataset = {"type": "chat_template.default", "field_messages": "messages", "split": "train"}
            dataset |= {"field_chosen": "chosen", "field_rejected": "rejected"}
        elif spec.data == "texts":
            dataset = {"type": "completion", "field": "text"}
        else:
            dataset = {"type": "chat_template", "field_messages": "messages"}
        base = {
            **places,
            "special_tokens": {"pad_token": "<|endoftext|>"},
            "chat_template": "tokenizer_default",
            "datasets": [{"path": str(data), "ds_type": "json", **dataset}],
            "sequence_len": 512,
            "micro_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "max_steps": STEPS,
            "num_epochs": STEPS,
            "optimizer": "sgd",
            "learning_rate": 0.5,
            "lr_scheduler": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "max_grad_norm": 0.0,
            "attn_implementation": "sdpa",
            "bf16": False,
            "fp16": False,
            "tf32": False,
            "logging_steps": 1,
            "save_steps": STEPS,
            "val_set_size": 0,
            "dataset_num_proc": 1,
            "seed": 7,
        }
        evaluation = evaluated(data) if spec.data.endswith("and evaluation") else {}
        adapter = {"lora_model_dir": str(self._models[spec.adapter])} if spec.adapter else {}
        return {**base, **evaluation, **adapter, **spec.config}

    def _environment(self, spec: Spec) -> dict[str, str]:
        paths = [self._distributions[spec.distribution], Path(__file__).parent / "plugins"]
        several = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"} if spec.processes > 1 else {}
        return {
            **os.environ,
            "PATH": os.pathsep.join([str(self.python.parent), os.environ["PATH"]]),  # Axolotl looks there for torchrun
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "HF_HUB_OFFLINE": "1",
            "AXOLOTL_DO_NOT_TRACK": "1",
            "WANDB_MODE": "disabled",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",  # two runs at a time on two cores
            **several,
            **spec.environment,
        }

    def _finish(self, command: list[str], output: Path, environment: dict[str, str]) -> AxolotlRun:
        log = output / "log.txt"
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, cwd=output, env=environment, start_new_session=True
            )
            try:
                exit_code = process.wait(TIME_LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                exit_code = process.wait()
        return AxolotlRun(output, exit_code, log.read_text(encoding="utf-8", errors="replace"))
