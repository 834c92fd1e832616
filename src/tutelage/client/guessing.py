"""How much GPU memory a model may need, guessed from its name. Whoever knows better says `requires_vram_gb=`."""

import math
import re

UNKNOWN_BILLIONS = 8.0
"""Of a model whose name says nothing."""
KNOWN_BILLIONS = {"smollm2": 0.135, "mistral-small": 22.0}
_SIZE = re.compile(r"(?<![\w.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z])", re.IGNORECASE)


def billions_in(model: str) -> float:
    """Billions of parameters by the model's name: `Qwen3-4B` 4, `SmolLM2-135M` 0.135, `Mixtral-8x7B` 56."""
    name = model.rpartition("/")[2]
    found = _SIZE.search(name)
    if found is not None:
        return float(found[1] or 1) * float(found[2]) / (1000 if found[3].lower() == "m" else 1)
    known = (size for part, size in KNOWN_BILLIONS.items() if part in name.lower())
    return next(known, UNKNOWN_BILLIONS)


def guessed_vram_gb(model: str, extra_gb: float, bytes_per_parameter: float = 2.0) -> int:
    """Gigabytes: two bytes a parameter (one in 8 bits, a half in 4 bits), and `extra_gb` for what else is there."""
    for bits, size in (("8bit", 1.0), ("4bit", 0.5)):
        if bits in model.lower().replace("-", ""):
            bytes_per_parameter = min(bytes_per_parameter, size)
    return math.ceil(bytes_per_parameter * billions_in(model) + extra_gb)
