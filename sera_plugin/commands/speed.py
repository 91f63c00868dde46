"""How fast a run is: tokens per second by phase, given or measured in another run."""

from __future__ import annotations

from dataclasses import dataclass
from sys import float_info

import numpy as np

from sera_plugin.data.reader import RunFiles
from sera_plugin.runtime.errors import RunError

PHASES = ("scoring", "generation", "training")


@dataclass(frozen=True)
class Speed:
    """Tokens per second of the whole job, by phase; None where it is not known.

    Attributes:
        scoring: of forward passes without gradient.
        generation: of sampling.
        training: of forward and backward passes.
        note: a sentence about how they were found.
    """

    scoring: float | None = None
    generation: float | None = None
    training: float | None = None
    note: str = ""

    @classmethod
    def measured(cls, run: RunFiles, processes: int) -> Speed:
        """The mean over the rounds of a run, as if every process of another run were as fast.

        Args:
            run: the run.
            processes: GPUs of the other run.

        Raises:
            RunError: one sentence, if the run has measured nothing, or on nobody knows how many
                processes.
        """
        found = {}
        for phase in PHASES:
            name = f"tokens_per_second_{phase}"
            given = [stored.summary.get(name) for stored in run.rounds]
            values = [v for v in given if isinstance(v, (int, float)) and 0 < v < float_info.max]
            found[phase] = float(np.mean(values)) if values else None
        if not any(found.values()):
            raise RunError(f"--measured {run.root}: no round of it has been timed yet.")
        ranks = run.settings.get("ranks")
        if type(ranks) is not int or ranks < 1:
            raise RunError(
                f"--measured {run.root}: its run.json does not say on how many processes it ran, "
                f"so its speed can't be scaled to {processes}; give --scoring, --sampling and "
                "--training."
            )
        scaled = {phase: v and v * processes / ranks for phase, v in found.items()}
        note = "Speed as measured, on as many GPUs."
        if processes != ranks:
            note = (
                f"Speed as measured on {ranks}, for {processes} GPUs multiplied by "
                f"{processes / ranks:.3g}, as if each were as fast."
            )
        return cls(**scaled, note=note)
