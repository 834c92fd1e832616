"""The one tree of errors. Each says the value, the place and the remedy in one sentence.

The command line prints the sentence and exits with `exit_code`; nothing else of an error is shown.
"""

import difflib
from collections.abc import Iterable


class TutelageError(Exception):
    """Base of every error a user can mend. `str(error)` is the sentence they read."""

    exit_code = 2


class ConfigError(TutelageError):
    """A config file, an option or a combination of options is not valid."""


class DataError(TutelageError):
    """A data file cannot be used. The message names file and line."""


class TooLargeError(DataError):
    """A file has more bytes than are taken."""


class ModelError(TutelageError):
    """A model or tokenizer cannot be found, loaded or trained as asked."""


class OutputError(TutelageError):
    """A folder cannot be written: missing rights, not empty, disk full."""


class ResumeError(TutelageError):
    """A run cannot be continued: no complete checkpoint, or another config."""


class TrainingError(TutelageError):
    """Training met a state it must not go on from, such as a step without a valid token."""


class JobError(TutelageError):
    """A job cannot do what is asked of it: no such job, or not from where it stands."""


class NotFoundError(JobError):
    """There is none of that id, or it belongs to another organisation."""


class NotServedError(NotFoundError):
    """No running job serves the model that is asked."""


class FencedError(JobError):
    """A run that was given up, or has ended, tries to write. The one who writes has to stop."""


class WorkerStoppedError(JobError):
    """A worker that was stopped on the server asks for work. It has to end, not to register again."""


class StorageError(TutelageError):
    """Records or files cannot be read or written: the database does not answer, the disk is full."""


class ContentGoneError(StorageError):
    """There is a record of a file, and its bytes are gone."""


class ShapeError(TutelageError, ValueError):
    """Tensors that must agree in shape do not."""


class Interrupted(TutelageError):
    """The user stopped the run; the message says how to continue it."""

    exit_code = 130


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'loss'?"` for the known name closest to `name`, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""
