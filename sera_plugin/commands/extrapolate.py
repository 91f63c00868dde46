"""Write θ + α·(θ − θ_start) of a run as a model (ExPO, arXiv 2404.16792). No training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import click
import torch

from sera_plugin.commands.extrapolate_files import (
    ADAPTER,
    MODEL,
    SHARD,
    appearing,
    copy_companions,
    write_json,
    write_shards,
    written_before,
)
from sera_plugin.commands.extrapolate_sources import (
    ADAPTER_CONFIG,
    MODEL_CONFIG,
    Sources,
    TrainedRun,
)
from sera_plugin.commands.extrapolate_weights import extrapolated, scaled
from sera_plugin.runtime.errors import RunError, SeraConfigError
from sera_plugin.runtime.version import __version__

LIBRARIES = ("torch", "transformers", "safetensors")


@dataclass(frozen=True)
class Extrapolated:
    """A model that was written.

    Attributes:
        alpha: how far beyond the trained model.
        folder: where it is.
        new: whether it was written now.
    """

    alpha: float
    folder: Path
    new: bool


def check_alphas(alphas: Sequence[float]) -> None:
    """Refuse an α that does not go beyond the trained model.

    Raises:
        SeraConfigError: one sentence.
    """
    for alpha in alphas:
        if not (math.isfinite(alpha) and alpha > 0):
            raise SeraConfigError(f"--alpha {alpha:g} is not allowed; it must be a number above 0.")


def extrapolate(
    run: TrainedRun, alphas: Sequence[float], out: Path, most: float = SHARD
) -> list[Extrapolated]:
    """Write a model for every α into a folder ``alpha-α``, unless it is there.

    Args:
        run: the run.
        alphas: how far beyond the trained model, above 0.
        out: holds the folders.
        most: bytes of a shard.

    Raises:
        RunError: one sentence.
        SeraConfigError: one sentence.
    """
    check_alphas(alphas)
    sources = Sources.of(run)
    inputs = sources.inputs
    found = []
    for alpha in dict.fromkeys(alphas):
        target = out / f"alpha-{repr(float(alpha)).removesuffix('.0')}"
        # What is in the way is found before the first model is written.
        there = written_before(target, {"alpha": alpha, **inputs})
        found.append(Extrapolated(alpha, target, not there))
    facts = {
        "run": str(run.folder.resolve()),
        "base_model": run.base_model,
        "revision": run.revision,
        "versions": {"sera_plugin": __version__, **{name: version(name) for name in LIBRARIES}},
    }
    for model in found:
        if model.new:
            with appearing(model.folder, {"alpha": model.alpha, **inputs, **facts}) as folder:
                _write(sources, folder, model.alpha, most)
    return found


def _write(sources: Sources, folder: Path, alpha: float, most: float) -> None:
    end, start = sources.end, sources.start

    def make(name: str) -> torch.Tensor:
        trained = end.tensor(name)
        if start is None or name not in sources.begun:
            return trained
        try:
            return extrapolated(trained, start.tensor(sources.begun[name]), alpha)
        except OverflowError as error:
            raise RunError(f"--alpha {alpha:g}: {name} is {error}; use a smaller α.") from error

    sizes = {name: end.tensor(name).nbytes for name in end.files}
    if sources.adapter is None:
        write_shards(folder, MODEL, sizes, make, most)
        copy_companions(end.folder, folder, MODEL_CONFIG, "generation_config.json")
    else:
        write_shards(folder, ADAPTER, sizes, make, math.inf)
        write_json(folder / ADAPTER_CONFIG, scaled(sources.adapter, alpha))
        copy_companions(end.folder, folder)


def run_command(path: Path, alphas: Sequence[float], out: Path | None, evaluate: bool) -> None:
    """Write the models of the run in ``path`` and say where they are; with numbers if asked."""
    from rich.console import Console

    from sera_plugin.commands.extrapolate_eval import Evaluation
    from sera_plugin.commands.terminal import grid

    check_alphas(alphas)
    run = TrainedRun.of(path)
    out = out or run.folder / "extrapolated"
    # Pairs that can't be had are found before models are written.
    evaluation = Evaluation.of(run, out) if evaluate else None
    models = extrapolate(run, alphas, out)
    for model in models:
        click.echo(f"{model.folder}{'' if model.new else ' (as before)'}")
    if evaluation is not None:
        rows = evaluation.measure([(0.0, run.folder), *((m.alpha, m.folder) for m in models)])
        cells = [
            [f"{row.alpha:g}", *(f"{n:.4f}" for n in (row.loss, row.accuracy, row.margin))]
            for row in rows
        ]
        title = f"{len(evaluation.pairs):,} evaluation pairs"
        Console().print(grid(title, ("α", "loss", "accuracy", "reward margin"), cells))
