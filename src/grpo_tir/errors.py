"""Define all exceptions of this package, in one tree.

    GrpoTirError
    ├── UserError: ConfigError, DataError, ModelError, TemplateError, CheckpointError, OutputError,
    │              ExecutorUnavailable
    └── ExecutorOutage, GraderOutage, CertificateError, TrainingDiverged

A failure of the *model's* code raises no exception. It is data (`types.ToolResult`).
"""


class GrpoTirError(Exception):
    """Root of all exceptions of this package. The message is for the user."""

    exit_code = 1


class UserError(GrpoTirError):
    """Bad input. The message is one line with fault, location and remedy; it is printed without a traceback."""

    exit_code = 2


class ConfigError(UserError):
    """An unknown key, a value of the wrong type, or values that contradict each other."""


class DataError(UserError):
    """A problem file or a row that cannot be used, with file and line."""


class ModelError(UserError):
    """A model or tokenizer that cannot be loaded or used."""


class TemplateError(UserError):
    """A prompt template that does not render."""


class CheckpointError(UserError):
    """There is no complete checkpoint to resume from, or it belongs to another run."""


class OutputError(UserError):
    """A folder cannot be written, or the disk is full."""


class ExecutorUnavailable(UserError):
    """The requested executor cannot be started on this machine."""


class ExecutorOutage(GrpoTirError):
    """Too many tool calls were lost to failures of the executor. To continue would train on noise."""


class GraderOutage(GrpoTirError):
    """Too many answers could not be judged, for reasons outside of the answers."""


class CertificateError(GrpoTirError):
    """The tokens to be trained are not the tokens that were sampled."""


class TrainingDiverged(GrpoTirError):
    """Several optimizer steps in a row had a loss or gradient that is not finite."""
