"""What a run is: options, defaults and the rules between them. Torch-free."""

from tutelage.config.loading import config_beside, load_config, parse_overrides, read_options
from tutelage.config.objectives import (
    OBJECTIVES,
    DftConfig,
    DpoConfig,
    GrpoConfig,
    ObjectiveConfig,
    OrpoConfig,
    Purpose,
    SdftConfig,
    SftConfig,
)
from tutelage.config.training import Direction, SamplingCallback, TrainingConfig, known_options

__all__ = [
    "OBJECTIVES",
    "DftConfig",
    "Direction",
    "DpoConfig",
    "GrpoConfig",
    "ObjectiveConfig",
    "OrpoConfig",
    "Purpose",
    "SamplingCallback",
    "SdftConfig",
    "SftConfig",
    "TrainingConfig",
    "config_beside",
    "known_options",
    "load_config",
    "parse_overrides",
    "read_options",
]
