"""What can go wrong, as types. Every message names the value, what is allowed, and the way out."""


class VocoError(Exception):
    """Base of all errors that a user can cause and mend."""


class UsageError(VocoError):
    """A command was called in a way that cannot work."""


class ConfigError(VocoError):
    """A recipe, or a combination of settings, is not valid."""


class DataError(VocoError):
    """A scan or a label cannot be taken; the message is the reason a user reads."""


class StoreError(VocoError):
    """A store on disk is missing, damaged, or made in another way than asked for."""


class WeightsError(VocoError):
    """Weights do not fit the network they were meant for."""


class CheckpointError(VocoError):
    """A training state cannot be read, or belongs to another run."""


class TrainingError(VocoError):
    """Training cannot go on: a loss or a gradient is not a finite number."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and did so after a whole step and a checkpoint.

    Attributes:
        status: Exit status of the program: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
