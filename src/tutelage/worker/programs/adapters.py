"""Folders made of other folders by links: an adapter on another base, a model with another chat template.

Not here: merging weights (`merging.py`).
"""

import json
from pathlib import Path
from typing import Any

from tutelage.errors import ConfigError, ModelError, OutputError
from tutelage.files import make_folder, write_json
from tutelage.models import resolve_model
from tutelage.worker.models import ADAPTER_CONFIG, BASE


def adapter_on(base: str, adapter: str, target: Path) -> Path:
    """`target` as the adapter, on `base` whatever it names itself. Raises ConfigError where it is no adapter."""
    source = local_folder(adapter)
    if not (source / ADAPTER_CONFIG).is_file():
        raise ConfigError(
            f"lora adapter '{adapter}': it is a whole model (no {ADAPTER_CONFIG}); give it as 'model', or train with "
            "merge_before_push=False"
        )
    linked(source, target, without=ADAPTER_CONFIG)
    config: Any = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    write_json(target / ADAPTER_CONFIG, config | {BASE: resolve_model(base)})
    return target


def linked(source: Path, target: Path, *, without: str) -> None:
    """A folder with links to the files of another, but one. Raises OutputError."""
    make_folder(target, "folder of the worker")
    try:
        for file in source.iterdir():
            if file.is_file() and file.name != without:
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
