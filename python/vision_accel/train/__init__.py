# SPDX-License-Identifier: Apache-2.0
"""Training: options, the loop, evaluation."""

from vision_accel.data.source import DataError
from vision_accel.train.config import Config, from_dict, load_config, save_config
from vision_accel.train.errors import CheckpointError, ConfigError, TrainingError
from vision_accel.train.evaluate import EvalResult, evaluate
from vision_accel.train.loop import RunResult, fit

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataError",
    "EvalResult",
    "RunResult",
    "TrainingError",
    "evaluate",
    "fit",
    "from_dict",
    "load_config",
    "save_config",
]
