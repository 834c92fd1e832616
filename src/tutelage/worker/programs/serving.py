"""What is needed to serve a model and its adapters: folders, the command, the names upstream.

`transformers serve` loads models by the name in the request and knows no adapters: each is merged into its base here,
and one process serves them all. `vllm serve` puts adapters on the base while it runs. Not here: running it (`api.py`).
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.errors import ConfigError, ModelError
from tutelage.files import make_folder, write_text
from tutelage.jobs.params import ApiParams
from tutelage.worker.models import ADAPTER_CONFIG
from tutelage.worker.programs.adapters import adapter_on, linked, local_folder
from tutelage.worker.programs.trained import TEMPLATE_FILE, template_source

WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy for the world outside has no business between a job and its own server."""
QUANTIZATIONS = {"bitsandbytes": "bnb-4bit", "bnb-4bit": "bnb-4bit", "bnb-8bit": "bnb-8bit"}


class ModelServer(ABC):
    """A server that is ready to be started in `folder`. models: name asked for to name upstream."""

    name: str

    def __init__(self, params: ApiParams, asked: ApiParams, folder: Path) -> None:
        self.params = params
        self.asked = asked
        self.folder = folder
        self.models: dict[str, str] = {}
        self.gpus = int(os.environ.get("N_GPUS") or 0)
        make_folder(folder, "folder of the worker")

    @abstractmethod
    def command(self, host: str, port: int) -> Sequence[str]:
        """What to run."""

    @abstractmethod
    def load_models(self, port: int) -> None:
        """Have a server that answers load what it does not load on its own. Raises ModelError."""


def model_server(params: ApiParams, asked: ApiParams, folder: Path) -> ModelServer:
    """The server for these options. asked: the same with the names that models are asked for by.

    Raises ConfigError for options it cannot honour, ModelError for models that cannot be read or merged.
    """
    return (VllmServer if params.server == "vllm" else TransformersServer)(params, asked, folder)


class TransformersServer(ModelServer):
    name = "transformers serve"

    def __init__(self, params: ApiParams, asked: ApiParams, folder: Path) -> None:
        super().__init__(params, asked, folder)
        if params.kv_cache_dtype is not None:
            raise ConfigError("kv_cache_dtype: transformers serve has no such option; set server='vllm', or leave it")
        if params.quantization is not None and params.quantization not in QUANTIZATIONS:
            raise ConfigError(
                f"quantization: transformers serve has no '{params.quantization}'; set one of "
                f"{', '.join(QUANTIZATIONS)}, or server='vllm'"
            )
        if params.quantization is not None and self.gpus == 0:
            raise ConfigError(f"quantization: {params.quantization} needs a GPU; leave it out on this worker")
        self._add(asked.model, params.model)
        for name, adapter in zip(asked.lora_adapters, params.lora_adapters, strict=True):
            place = len(self.models)
            self._add(name, str(adapter_on(params.model, adapter, folder / f"adapter-{place}")))

    def command(self, host: str, port: int) -> Sequence[str]:
        # A model that is named is loaded first and the only one; several are loaded when the server is up.
        names = list(self.models.values())
        options = ["--host", host, "--port", str(port), "--model-timeout", "-1"]
        if self.gpus == 0:
            options += ["--device", "cpu", "--dtype", "float32"]  # bfloat16 products are far slower there
        if self.params.quantization is not None:
            options += ["--quantization", QUANTIZATIONS[self.params.quantization]]
        return [*script("transformers"), "serve", *(names if len(names) == 1 else []), *options]

    def load_models(self, port: int) -> None:
        for name in self.models.values() if len(self.models) > 1 else ():
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/load_model",
                data=json.dumps({"model": name}).encode(),
                headers={"Content-Type": "application/json"},
            )
            with WITHOUT_PROXY.open(request) as response:
                lines = [line for line in response.read().decode().splitlines() if line.startswith("data: ")]
            state: Any = json.loads(lines[-1].removeprefix("data: ")) if lines else {}
            if state.get("status") != "ready":
                raise ModelError(f"model '{name}' cannot be loaded ({state.get('message', 'no reason given')})")

    def _add(self, name: str, model: str) -> None:
        """A folder beside the others under a name without what the server takes for a revision (`@`)."""
        if name in self.models:
            return
        upstream = f"{len(self.models)}-{re.sub(r'[^A-Za-z0-9._-]', '-', name)[-80:]}"
        source = _merged(model, self.folder / f"{upstream}-merged")
        if self.params.chat_template == "default":
            (self.folder / upstream).symlink_to(source.resolve())
        else:
            linked(source, self.folder / upstream, without=TEMPLATE_FILE)
            template = template_source(source, self.params.chat_template)
            write_text(self.folder / upstream / TEMPLATE_FILE, template)
        self.models[name] = upstream


class VllmServer(ModelServer):
    name = "vllm serve"

    def __init__(self, params: ApiParams, asked: ApiParams, folder: Path) -> None:
        super().__init__(params, asked, folder)
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError("server: vllm is not installed on this worker; pip install vllm, or leave server out")
        self._model = str(_merged(params.model, folder / "model-merged"))
        self.models = {name: name for name in (asked.model, *asked.lora_adapters)}

    def command(self, host: str, port: int) -> Sequence[str]:
        params = self.params
        options = ["--served-model-name", self.asked.model, "--host", host, "--port", str(port)]
        options += ["--max-model-len", str(params.max_model_len), "--max-num-seqs", str(params.max_num_seqs)]
        options += ["--dtype", "auto", "--enable-prefix-caching", "--tensor-parallel-size", str(max(self.gpus, 1))]
        if params.quantization is not None:
            options += ["--quantization", params.quantization]
        if params.kv_cache_dtype is not None:
            options += ["--kv-cache-dtype", params.kv_cache_dtype]
        if params.chat_template != "default":
            template = template_source(Path(self._model), params.chat_template)
            write_text(self.folder / TEMPLATE_FILE, template)
            options += ["--chat-template", TEMPLATE_FILE]
        if params.lora_adapters:
            adapters = zip(self.asked.lora_adapters, params.lora_adapters, strict=True)
            loras = params.max_loras if params.max_loras > 0 else len(params.lora_adapters)
            options += ["--enable-lora", "--max-lora-rank", str(params.max_lora_rank), "--max-loras", str(loras)]
            options += ["--lora-modules", *(f"{name}={local_folder(adapter)}" for name, adapter in adapters)]
        return [*script("vllm"), "serve", self._model, *options]

    def load_models(self, port: int) -> None:
        """They are loaded before it answers."""


def script(name: str) -> list[str]:
    """The command of a package of this environment."""
    return [str(Path(sys.executable).with_name(name))]


def _merged(model: str, target: Path) -> Path:
    """The model's folder, or, where it is an adapter's, `target` with the adapter merged into its base."""
    source = local_folder(model)
    if not (source / ADAPTER_CONFIG).is_file():
        return source
    print(f"merging the adapter {source.name} into its base", flush=True)
    merging = [sys.executable, "-m", "tutelage.worker.programs.merging", str(source), str(target)]
    done = subprocess.run(merging, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise ModelError(f"model '{model}': the adapter cannot be merged into its base ({lines[-1]})")
    return target
