"""Reads and refuses Axolotl configs: is DFT asked for, and can it be had? Torch-free.

Not here: the schema of `dft:` (`args.py`), what is found wrong with a trainer (`trainer.py`).
"""

import difflib
import os
from collections.abc import Mapping
from typing import Any

OPTIONS = ("enabled",)

SWITCH_OFF = "or set 'enabled: false' under 'dft:'"

# Key of Axolotl's config -> why it cannot go with dft, and what to do.
CONFLICTS = {
    "orpo_alpha": "without 'rl: orpo' Axolotl would train with a loss of its own; remove it",
    "use_dft": "that would be a DFT of Axolotl's own; remove it",
    "use_eaft": "EAFT is another weight on the same tokens; remove use_eaft",
    "liger_use_token_scaling": "that is DFT inside Liger, and the tokens would be weighted twice; remove it",
    "label_smoothing_factor": "the probability of a smoothed target weights nothing; remove it",
    "label_smoothing": "the probability of a smoothed target weights nothing; remove it",
    "context_parallel_size": "a process would see a part of each sequence and the labels of all of it; set it to 1",
    "sequence_parallel_degree": "a process would see a part of each sequence and the labels of all of it; set it to 1",
}
NUMBERS_OF_PROCESSES = ("context_parallel_size", "sequence_parallel_degree")
"""Of the above, those that 1 switches off."""

# Key -> what trains instead. Their trainers have losses of their own.
OTHER_OBJECTIVES = {
    "rl": "rl: {}",
    "reward_model": "a reward model",
    "process_reward_model": "a process reward model",
}


class Refused(SystemExit):
    """Ends the run with one sentence on standard error and exit code 1; no traceback hides what to do about it."""

    def __init__(self, sentence: str) -> None:
        # Every process refuses for the same reason: the first one says it.
        super().__init__(f"axolotl_dft_plugin: {sentence}" if is_first_process() else 1)


def is_first_process() -> bool:
    """Whether this process is the one that speaks."""
    return os.environ.get("LOCAL_RANK", "0") in ("0", "-1")


def wants_dft(cfg: Mapping[str, Any], plugin: str) -> bool:
    """Whether this config lists the class called `plugin` and does not switch it off.

    Axolotl keeps the plugins of an earlier config of the same process and calls them for a later one as well.
    """
    if not any(str(name).rpartition(".")[2] == plugin for name in cfg.get("plugins") or ()):
        return False
    options = cfg.get("dft")
    return options is None or options.get("enabled") is not False


def other_objective(cfg: Mapping[str, Any]) -> str | None:
    """What the config trains with if not a loss on the tokens of its data: RL, a reward model."""
    for key, description in OTHER_OBJECTIVES.items():
        if value := cfg.get(key):
            return description.format(getattr(value, "value", value))
    return None


def refuse_config(cfg: Mapping[str, Any], plugin: str) -> None:
    """Raises Refused for what is wrong under `dft:` and for options that cannot go with it."""
    _refuse_options(cfg.get("dft"))
    if not wants_dft(cfg, plugin) or other_objective(cfg):
        return
    for key, reason in CONFLICTS.items():
        value = cfg.get(key)
        if value and not (key in NUMBERS_OF_PROCESSES and value == 1):
            raise Refused(f"'{key}: {_as_yaml(value)}' does not go with dft: {reason}, {SWITCH_OFF}")


def _refuse_options(options: Any) -> None:
    if options is None:
        return
    if not isinstance(options, Mapping):
        raise Refused(f"'dft: {_as_yaml(options)}' is not a block of options; write 'enabled: true' on a line below it")
    for key in options:
        if key not in OPTIONS:
            near = difflib.get_close_matches(str(key), OPTIONS, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"it knows {', '.join(OPTIONS)}"
            raise Refused(f"'{key}' under 'dft:' is not an option; {hint}")
    enabled = options.get("enabled", True)
    if not isinstance(enabled, bool):
        raise Refused(f"'enabled: {_as_yaml(enabled)}' under 'dft:' is neither true nor false; write one of the two")


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
