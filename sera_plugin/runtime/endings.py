"""How a process ends on an error of ours: with its sentence, last and alone, and exit code 1."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from types import TracebackType

from sera_plugin.runtime.errors import FailedElsewhereError, SeraError
from sera_plugin.runtime.logs import logger

LOG = logger(__name__)

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where torchrun, and accelerate with several processes, look for what a rank died of."""

Hook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


@dataclass(frozen=True)
class SentenceAlone:
    """Stands for ``sys.excepthook``: of an error of ours nothing is shown but its sentence.

    Attributes:
        previous: the hook before, to which all other errors go as they are.
    """

    previous: Hook

    def __call__(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, SeraError):
            self.previous(kind, error, trace)
        elif not error.said:
            error.said = True
            # Loggers such as wandb learn from their hooks that the run failed, and print it all.
            with redirect_stderr(io.StringIO()):
                self.previous(kind, error, trace)
            LOG.debug("Where it was raised", exc_info=error, main_process_only=False)
            LOG.error("%s", error, main_process_only=_told_to_launcher(error))


def end_with_sentences() -> None:
    """Let errors of ours that nothing catches end this process with their sentence alone."""
    if not isinstance(sys.excepthook, SentenceAlone):
        sys.excepthook = SentenceAlone(sys.excepthook)


def _told_to_launcher(error: SeraError) -> bool:
    """Whether the launcher will show the sentence in its table of failures."""
    path = os.environ.get(_ERROR_FILE)
    if isinstance(error, FailedElsewhereError):
        return True  # the other rank's own words are shown
    told = {"message": str(error), "extraInfo": {"timestamp": str(int(time.time()))}}
    with suppress(OSError):
        if path:
            with open(path, "w", encoding="utf-8") as file:
                json.dump({"message": told}, file)
            return True
    return False
