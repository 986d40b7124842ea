"""The errors a user can cause, each one line: what, where, found, fix.

Every floor raises these; only `cli.py` catches them, prints the line and exits with the class's
code. Nothing here knows what a corpus, a model or a rank is.
"""

from __future__ import annotations


class PlantError(Exception):
    """Base of every error that is the user's to mend; printed without a traceback."""

    exit_code = 1


class ConfigError(PlantError):
    """A setting is unknown, of the wrong type, or out of range."""

    exit_code = 2


class DataError(PlantError):
    """A document, label or source file is not what its format promises."""

    exit_code = 3


class ArtifactError(PlantError):
    """An artifact is missing, unreadable, or was made from another parent."""

    exit_code = 4


class RuntimeSetupError(PlantError):
    """A device, precision, world size or optional package asked for is not there."""

    exit_code = 5


class TrainingError(PlantError):
    """Training cannot go on: the loss is not finite, or nothing is left to train."""

    exit_code = 6


class RankLost(PlantError):
    """Another rank ended or fell silent in the middle of a collective; its own words say why."""

    exit_code = 7


class StopRequested(PlantError):
    """SIGTERM or SIGUSR1 arrived; the step was finished and saved. Start again to go on.

    The code is EX_TEMPFAIL of sysexits.h, so that a scheduler may requeue on it.
    """

    exit_code = 75
