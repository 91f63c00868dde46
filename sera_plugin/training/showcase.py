"""A table of sample bootstrapped pairs for Weights & Biases or Trackio, if the host logs there."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from sera_plugin.runtime.logs import logger

LOG = logger(__name__)

ROWS = 20
"""Pairs in a table."""
COLUMNS = (
    "round",
    "prompt",
    "chosen",
    "rejected",
    "margin",
    "reward_chosen",
    "reward_rejected",
    "chosen_source",
    "rejected_source",
    "example_id",
)
NAME = "sera/bootstrapped_pairs"


def log_samples(
    fresh: Iterable[Mapping[str, Any]], report_to: Sequence[str], step: int
) -> tuple[str, ...]:
    """Log the first pairs of a round as a table, and return where it went.

    The host starts the loggers; one that has no run open is left out. A logger that fails is
    named in a warning: it must not end a run.

    Args:
        fresh: ``fresh_lines`` of the round, best first.
        report_to: the host's loggers.
        step: the trainer's global step.
    """
    found = []
    wanted = [name for name in ("wandb", "trackio") if name in report_to and name in sys.modules]
    if not wanted:
        return ()
    rows = [[pair[name] for name in COLUMNS] for pair in islice(fresh, ROWS)]
    for name in wanted if rows else ():
        try:
            if _LOGGERS[name](rows, step):
                found.append(name)
        except Exception as error:  # a logger's own errors are of any kind
            LOG.warning("%s did not take the table of new pairs (%s).", name, error)
    return tuple(found)


def _wandb(rows: list[list[Any]], step: int) -> bool:
    import wandb

    if wandb.run is None:
        return False
    table = wandb.Table(columns=list(COLUMNS), data=rows)
    wandb.log({NAME: table, "train/global_step": step})
    return True


def _trackio(rows: list[list[Any]], step: int) -> bool:
    import pandas as pd
    import trackio
    from trackio import context_vars

    if context_vars.current_run.get() is None:
        return False
    table = trackio.Table(dataframe=pd.DataFrame(rows, columns=list(COLUMNS)))
    trackio.log({NAME: table, "train/global_step": step})
    return True


_LOGGERS = {"wandb": _wandb, "trackio": _trackio}
