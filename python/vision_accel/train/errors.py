# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in a run through no fault of the code. Each message is one line for the user."""


class ConfigError(ValueError):
    """An option, or a combination of options, that cannot be used; the message names the option."""


class TrainingError(RuntimeError):
    """A run that cannot go on, such as one whose gradients stay infinite."""


class CheckpointError(RuntimeError):
    """A checkpoint or another file of the run directory that cannot be written or read."""
