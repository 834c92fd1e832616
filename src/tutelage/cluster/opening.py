"""From `cluster.yaml` to its launcher. A new one: a module in `launchers`, a row here, a section in docs/cluster.md."""

from collections.abc import Callable
from pathlib import Path

from tutelage.cluster.launchers.protocol import Launcher
from tutelage.cluster.settings import ClusterSettings
from tutelage.errors import ConfigError, nearest


def _local(settings: ClusterSettings, folder: Path) -> Launcher:
    from tutelage.cluster.launchers.local import LocalLauncher

    if settings.options:
        raise ConfigError(f"options: '{next(iter(settings.options))}' is none of the launcher local; it has none")
    return LocalLauncher(folder / "machines")


def _ray(settings: ClusterSettings, folder: Path) -> Launcher:
    try:
        from tutelage.cluster.launchers.ray import RayLauncher
    except ImportError as error:
        raise _missing("ray", error) from error
    return RayLauncher(settings)


def _runpod(settings: ClusterSettings, folder: Path) -> Launcher:
    try:
        from tutelage.cluster.launchers.runpod import RunPodLauncher
    except ImportError as error:
        raise _missing("runpod", error) from error
    return RunPodLauncher(settings)


def _missing(name: str, error: ImportError) -> ConfigError:
    return ConfigError(f"launcher: {name} needs a package that is missing ({error}); pip install 'tutelage[{name}]'")


LAUNCHERS: dict[str, Callable[[ClusterSettings, Path], Launcher]] = {"local": _local, "ray": _ray, "runpod": _runpod}


def open_launcher(settings: ClusterSettings, folder: Path) -> Launcher:
    """folder: for what a launcher keeps on this machine. Raises ConfigError."""
    make = LAUNCHERS.get(settings.launcher)
    if make is None:
        hint = nearest(settings.launcher, LAUNCHERS) or f"; one of {', '.join(LAUNCHERS)}"
        raise ConfigError(f"launcher: there is no '{settings.launcher}'{hint}")
    return make(settings, folder)
