"""The hooks that Axolotl calls, and when they do nothing. Torch-free.

Not here: what a config may say (`config.py`), how a trainer is changed (`trainer.py`).
"""

from collections.abc import Mapping
from typing import Any

from axolotl_dft_plugin.config import is_first_process, other_objective, refuse_config, wants_dft
from axolotl_dft_plugin.head import logger
from axolotl_dft_plugin.trainer import install


class DFTHooks:
    """Dynamic Fine-Tuning: the loss −sg(p_t)·log p_t on the tokens of the data, arXiv:2508.05629."""

    def register(self, cfg: Mapping[str, Any]) -> None:
        """Called with the YAML as it was written. Raises Refused for options that cannot be trained with."""
        refuse_config(cfg, type(self).__name__)

    def get_input_args(self) -> str:
        """The schema of `dft:`. Without it Axolotl would drop the key silently, and train with cross-entropy."""
        return "axolotl_dft_plugin.args.DFTArgs"

    def post_trainer_create(self, cfg: Mapping[str, Any], trainer: Any) -> None:
        """Train with the loss unless the config says otherwise. Raises Refused where that cannot work."""
        if not wants_dft(cfg, type(self).__name__):
            return
        if objective := other_objective(cfg):
            if is_first_process():
                logger.info("dft: left alone, this run trains with %s", objective)
            return
        # Again: Axolotl before 0.12 has no hook for the YAML as it was written.
        refuse_config(cfg, type(self).__name__)
        install(cfg, trainer)

    on_trainer_create = post_trainer_create
    """Another name for the hook, by which no release so far calls it. Calling both does it once."""


def plugin_class() -> type[DFTHooks]:
    """The hooks, with Axolotl's base class behind them for all other calls where there is an Axolotl."""
    try:
        from axolotl.integrations.base import BasePlugin  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name != "axolotl":
            raise
        return type("DFTPlugin", (DFTHooks,), {"__module__": "axolotl_dft_plugin"})
    return type("DFTPlugin", (DFTHooks, BasePlugin), {"__module__": "axolotl_dft_plugin"})
