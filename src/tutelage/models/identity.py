"""Which model this is, as a hash: what was measured of it can be used again as long as the hash stays.

Not here: what the model is asked.
"""

import hashlib
import json
from pathlib import Path

from transformers import AutoConfig

from tutelage.data.jsonl import data_hash
from tutelage.errors import ModelError
from tutelage.models.loading import base_of, resolve_model

READ_SUFFIXES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")
"""Of the files in a model's folder that a model or tokenizer is read from."""


def model_identity(name: str) -> str:
    """A hash of the files of a model's folder, of an adapter's and its base, or of a Hub model's name and commit.

    Weights are hashed whole and not by header, size and date: loading them reads every byte anyway, a copied folder
    is still the same model, and a fine-tuned one has the header and the size of its base. Raises ModelError
    and DataError.
    """
    source = resolve_model(name)
    folder = Path(source)
    if not folder.is_dir():
        return _hash(["hub", source, _commit(source)])
    files = sorted(path for path in folder.iterdir() if path.suffix in READ_SUFFIXES and path.is_file())
    base = base_of(source)
    parts = [f"{path.name} {data_hash(path)}" for path in files]
    return _hash(["folder", *parts, "" if base == source else model_identity(base)])


def _commit(name: str) -> str:
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model '{name}': not on the Hub or in its cache (is it spelled right, is there a network?)"
        ) from error
    return str(getattr(config, "_commit_hash", None))


def _hash(parts: list[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
