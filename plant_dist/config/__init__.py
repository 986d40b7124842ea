"""The configuration: one frozen dataclass a section (`schema`), read from YAML (`load`)."""

from plant_dist.config.load import load_config, resolved_yaml, run_folder
from plant_dist.config.schema import Config

__all__ = ["Config", "load_config", "resolved_yaml", "run_folder"]
