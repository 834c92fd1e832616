"""Tutelage: fine-tuning that teaches a model something new and shows what it forgot."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.client import AsyncClient, Client, Jobs, OpenWeights, register
    from tutelage.config import TrainingConfig
    from tutelage.training import Run, train

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "Client",
    "Jobs",
    "OpenWeights",
    "Run",
    "TrainingConfig",
    "__version__",
    "register",
    "train",
]

_HOMES = {
    "TrainingConfig": "tutelage.config",
    "Run": "tutelage.training",
    "train": "tutelage.training",
    **dict.fromkeys(("AsyncClient", "Client", "Jobs", "OpenWeights", "register"), "tutelage.client"),
}


def __getattr__(name: str) -> Any:
    """Load the public names on first use, so that `import tutelage` costs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tutelage' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
