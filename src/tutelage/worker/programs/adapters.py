"""Folders made of other folders by links: an adapter on another base, a model with another chat template.

Not here: merging weights (`merging.py`).
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tutelage.errors import ConfigError, ModelError, OutputError
from tutelage.files import make_folder, write_json
from tutelage.models import resolve_model
from tutelage.worker.models import ADAPTER_CONFIG, BASE

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


def adapter_on(base: str, adapter: str, target: Path) -> Path:
    """`target` as the adapter, on `base` whatever it names itself.

    Raises ConfigError where it is no adapter, or where `base` is one: an adapter has learnt on one set of weights.
    """
    weights = resolve_model(base)
    if (Path(weights) / ADAPTER_CONFIG).is_file():
        raise ConfigError(f"model '{base}': it is an adapter itself; give its base as 'model'")
    source = local_folder(adapter)
    if not (source / ADAPTER_CONFIG).is_file():
        raise ConfigError(
            f"lora adapter '{adapter}': it is a whole model (no {ADAPTER_CONFIG}); give it as 'model', or train with "
            "merge_before_push=False"
        )
    linked(source, target, without=ADAPTER_CONFIG)
    if not (source / "tokenizer_config.json").is_file():  # an adapter from elsewhere often comes without one
        linked(local_folder(weights), target, only=TOKENIZER_FILES)
    config: Any = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    write_json(target / ADAPTER_CONFIG, config | {BASE: weights})
    return target


def linked(source: Path, target: Path, *, without: str | None = None, only: Collection[str] | None = None) -> None:
    """A folder with links to the files of another: all but one, or some. Raises OutputError."""
    make_folder(target, "folder of the worker")
    try:
        for file in source.iterdir():
            if file.is_file() and file.name != without and (only is None or file.name in only):
                (target / file.name).symlink_to(file.resolve())
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror}); free space on the worker") from error


def local_folder(name: str) -> Path:
    """Where the files of a model or adapter are; one of the Hub's is downloaded. Raises ModelError."""
    source = Path(resolve_model(name))
    if source.is_dir():
        return source
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except Exception as error:  # the Hub's client raises many kinds
        raise ModelError(
            f"model '{name}': not on the Hub or in its cache (is it spelled right, is there a network, does it need a "
            "login?)"
        ) from error
