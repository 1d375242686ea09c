"""Define all exceptions of this package, in one tree.

    GrpoTirError
    ├── UserError            bad input: the message is one line with fault, location and remedy; exit code 2
    │   ├── ConfigError          an unknown key, a value of the wrong type, or values that contradict each other
    │   ├── DataError            a row, with its file and line
    │   ├── ModelError           a model or tokenizer that cannot be loaded or used
    │   ├── TemplateError        a prompt template that does not render
    │   ├── CheckpointError      no complete checkpoint to resume from, or it belongs to another run
    │   ├── OutputError          a folder that cannot be written, or a full disk
    │   └── ExecutorUnavailable  the requested executor cannot be started here
    ├── ExecutorOutage       too large a share of tool calls was lost: the run stops, nothing is scored
    ├── GraderOutage         the same, for grading
    ├── CertificateError     trained tokens are not the sampled tokens
    └── TrainingDiverged     too many optimizer steps in a row had no finite gradient

A failure of the *model's* code raises no exception. It is data (`types.ToolResult`).
"""


class GrpoTirError(Exception):
    """Root of all exceptions of this package. The message is for the user."""

    exit_code = 1


class UserError(GrpoTirError):
    """Bad input. The command line prints the message without a traceback."""

    exit_code = 2


class ConfigError(UserError):
    """A recipe or an override that cannot be run."""


class DataError(UserError):
    """A problem file that cannot be used."""


class ModelError(UserError):
    """A model or tokenizer that cannot be loaded or used."""


class TemplateError(UserError):
    """A prompt template that does not render."""


class CheckpointError(UserError):
    """There is no checkpoint to resume from, or it belongs to another run."""


class OutputError(UserError):
    """The output folder cannot be written."""


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
