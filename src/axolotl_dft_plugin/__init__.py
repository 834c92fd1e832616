"""Dynamic Fine-Tuning for Axolotl: `plugins: [axolotl_dft_plugin.DFTPlugin]` in the YAML, nothing else.

Importing this package loads neither torch nor axolotl. It also works as a folder copied alone onto somebody's path:
what it takes from `tutelage`, the chunked head, is optional.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axolotl_dft_plugin.plugin import DFTHooks as DFTPlugin

__all__ = ["DFTPlugin"]


def __getattr__(name: str) -> Any:
    """`DFTPlugin` is made when it is asked for, as a subclass of the installed Axolotl's own base class."""
    if name != "DFTPlugin":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from axolotl_dft_plugin.plugin import plugin_class

    globals()[name] = plugin_class()
    return globals()[name]
