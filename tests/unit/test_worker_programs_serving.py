"""What is needed to serve a model: folders, commands, refusals. No server is started here (`tests/integration`)."""

import json
import socket
import subprocess
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.small_runs import assert_same_bits, run_small, save_tiny_model
from tests.tiny import CHATML, tiny_tokenizer
from tutelage.errors import ConfigError, ModelError
from tutelage.jobs.params import ApiParams
from tutelage.models import load_frozen, load_tokenizer
from tutelage.worker.programs import api, serving
from tutelage.worker.programs.serving import ModelServer, model_server


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N_GPUS", "0")


def server_of(folder: Path, names: dict[str, Any] | None = None, **options: Any) -> ModelServer:
    """names: what models are asked for by, where that is not where they are."""
    options = {"model": str(save_tiny_model(folder / "tiny"))} | options
    asked = options | (names or {})
    return model_server(ApiParams(**options), ApiParams(**asked), folder / "served")


def test_one_model_is_pinned_under_a_name_without_what_means_a_revision(tmp_path: Path) -> None:
    server = server_of(tmp_path, {"model": "org/tiny@v2"})
    assert server.models == {"org/tiny@v2": "0-org-tiny-v2"}
    assert (server.folder / "0-org-tiny-v2").resolve() == tmp_path / "tiny"
    command = list(server.command("127.0.0.1", 4321))
    assert Path(command[0]).name == "transformers"
    assert " ".join(command[1:]) == (
        "serve 0-org-tiny-v2 --host 127.0.0.1 --port 4321 --model-timeout -1 --device cpu --dtype float32"
    )


def test_an_adapter_is_merged_into_the_base_and_served_beside_it(tmp_path: Path) -> None:
    run = run_small(tmp_path, "run")
    server = server_of(tmp_path, {"model": "m", "lora_adapters": ["a"]}, lora_adapters=[str(run.model_path)])
    assert server.models == {"m": "0-m", "a": "1-a"}
    merged = load_frozen(str(server.folder / "1-a")).model
    assert_same_bits(dict(merged.state_dict()), dict(load_frozen(str(run.model_path)).model.state_dict()))
    assert list(server.command("0.0.0.0", 1))[1:3] == ["serve", "--host"]


def test_a_chat_template_of_the_job_stands_beside_the_weights(tmp_path: Path) -> None:
    template = CHATML.replace("assistant", "helper")
    server = server_of(tmp_path, {"model": "m"}, chat_template=template)
    folder = server.folder / "0-m"
    assert load_tokenizer(str(folder)).get_chat_template() == template
    assert (folder / "model.safetensors").resolve() == tmp_path / "tiny" / "model.safetensors"
    assert load_tokenizer(str(tmp_path / "tiny")).get_chat_template() == CHATML


def test_vllm_puts_adapters_on_the_base_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("N_GPUS", "2")
    run = run_small(tmp_path, "run")
    names = {"model": "org/tiny", "lora_adapters": ["ftjob-0123456789ab"]}
    server = server_of(tmp_path, names, server="vllm", lora_adapters=[str(run.model_path)], kv_cache_dtype="fp8")
    assert server.models == {"org/tiny": "org/tiny", "ftjob-0123456789ab": "ftjob-0123456789ab"}
    assert list(server.command("0.0.0.0", 4321))[1:] == [
        *("serve", str(tmp_path / "tiny"), "--served-model-name", "org/tiny", "--host", "0.0.0.0", "--port", "4321"),
        *("--max-model-len", "2048", "--max-num-seqs", "16", "--dtype", "auto", "--enable-prefix-caching"),
        *("--tensor-parallel-size", "2", "--kv-cache-dtype", "fp8"),
        *("--enable-lora", "--max-lora-rank", "16", "--max-loras", "1"),
        *("--lora-modules", f"ftjob-0123456789ab={run.model_path}"),
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"server": "vllm"}, "server: vllm is not installed on this worker"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype: transformers serve has no such option"),
        ({"quantization": "awq"}, "quantization: transformers serve has no 'awq'"),
        ({"quantization": "bnb-4bit"}, "quantization: bnb-4bit needs a GPU"),
        ({"lora_adapters": ["TINY"]}, "it is a whole model"),
        ({"model": "ADAPTER", "lora_adapters": ["ADAPTER"]}, "it is an adapter itself; give its base as 'model'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_a_sentence(
    tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    tiny = save_tiny_model(tmp_path / "tiny")
    places = {"TINY": str(tiny), "ADAPTER": str(tmp_path / "adapter")}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny)}), encoding="utf-8")
    text = json.dumps(options)
    for name, place in places.items():
        text = text.replace(f'"{name}"', json.dumps(place))
    monkey = pytest.MonkeyPatch()
    monkey.setattr(serving, "_merged", lambda model, target: Path(model))  # an adapter without weights
    try:
        with pytest.raises(ConfigError, match=sentence):
            server_of(tmp_path, **json.loads(text))
    finally:
        monkey.undo()


def test_an_adapter_that_cannot_be_merged_says_why(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"base_model_name_or_path": str(save_tiny_model(tmp_path / "tiny"))}
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    tiny_tokenizer().save_pretrained(adapter)
    with pytest.raises(ModelError, match=r"cannot be merged into its base \(.*has no adapter_model.safetensors"):
        server_of(tmp_path, {"model": "m"}, model=str(adapter))


class Loading(BaseHTTPRequestHandler):
    """The model's server: it is healthy, and has loaded whatever it is asked to."""

    asked: ClassVar[list[str]] = []

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self._answer(b"ok")

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"])
        self._answer(b'data: {"status": "ready"}\n')

    def _answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def test_no_proxy_stands_between_a_job_and_its_own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`http_proxy` is set, as in companies, to where nobody listens; the model's server is asked past it."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        # What an earlier test may have made of another environment.
        monkeypatch.setattr(urllib.request, "_opener", None)
        monkeypatch.setattr(api, "START_SECONDS", 2.0)
        server = server_of(tmp_path, {"model": "m"})
        server.models = {"m": "0-m", "other": "1-other"}
        with HTTPServer(("127.0.0.1", 0), Loading) as loading:
            thread = threading.Thread(target=lambda: loading.serve_forever(poll_interval=0.01))
            thread.start()
            with subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE, text=True) as started:
                process = api._Process("server", started)
                try:
                    process.wait_until_it_answers(loading.server_port)
                    server.load_models(loading.server_port)
                finally:
                    started.kill()
                    process._reader.join()
                    loading.shutdown()
                    thread.join()
    assert Loading.asked == ["/health", "0-m", "1-other"]
