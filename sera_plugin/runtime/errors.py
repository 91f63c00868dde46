"""The errors that a user reads, each one sentence, and the making of one line out of any error."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from pathlib import Path


class SeraError(Exception):
    """What ends a run or a command; the message is one sentence, for people.

    Attributes:
        said: whether the sentence has been shown.
    """

    said = False


class SeraConfigError(SeraError, ValueError):
    """A config or dataset that SeRA can't work with; the message is one sentence."""


def no_column(key: str, column: str, names: Iterable[str], holds: str) -> SeraConfigError:
    """The error for a YAML key that names a column which the training pairs don't have.

    Args:
        key: the key.
        column: what it names.
        names: the columns that are there.
        holds: what the column should hold, as a clause behind "name the column".
    """
    return SeraConfigError(
        f"{key}: {column} is no column of the training pairs, which have {', '.join(names)}; name "
        f"the column {holds}."
    )


class MissingPackageError(SeraError, RuntimeError):
    """A package that SeRA needs can't be imported; the message is one sentence."""


class PluginNameError(SeraError, AttributeError):
    """The plugin goes by another name; the message is one sentence."""


class StoreError(SeraError, RuntimeError):
    """Artifacts can't be written or read; the message is one sentence."""


def what_happened(error: Exception) -> str:
    """What an error while reading a file means for the file, as the end of a clause."""
    if isinstance(error, FileNotFoundError):
        return "is missing"
    if isinstance(error, OSError):
        return f"can't be read ({error.strerror or error})"
    return f"is damaged ({error})"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class RunError(SeraError, ValueError):
    """A folder that can't be read as a run; the message is one sentence."""


class RuleError(SeraError, RuntimeError):
    """A rule or a signal can't be applied to the data at hand; the message is one sentence."""


class TermError(SeraError, RuntimeError):
    """A term of the loss broke its contract; the message is one sentence."""


class EngineError(SeraError, RuntimeError):
    """An engine of sampling broke its contract; the message is one sentence."""


class JudgeError(SeraError, RuntimeError):
    """The judge can't be used, or broke its contract; the message is one sentence."""


class VllmError(SeraError, RuntimeError):
    """vLLM can't be used, or broke its contract; the message is one sentence."""


class BadNumbersError(SeraError, RuntimeError):
    """Too many pairs have log-probs that are not finite numbers; the message is one sentence."""


class FailedElsewhereError(SeraError, RuntimeError):
    """Another rank failed; the message says how."""


def in_short(error: BaseException) -> str:
    """The kind of an error and what it says, on one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 500 else text[:497] + "..."


def raised(error: BaseException) -> str:
    """What an error of a user's own function says, and the file and line where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"raised {type(error).__name__}: {error}{place}"


class AskedToStop(Exception):
    """The run is to end here; raised on all ranks at the same point."""
