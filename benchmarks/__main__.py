"""``python -m benchmarks``: measure, print the table, and write results."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from benchmarks import report
from benchmarks.assets import make
from benchmarks.hardware import describe, slug
from benchmarks.presets import PRESETS, Preset
from benchmarks.runs import (
    ROOT,
    RunError,
    environment,
    interleaved,
    measure_passes,
    measure_variant,
)
from benchmarks.variants import Variant, variants

RESULTS = ROOT / "benchmarks/results"
PARTS = ("runs", "steps", "passes", "growth")


@click.command()
@click.option("--quick", is_flag=True, help="Tiny sizes, one turn: does it run? About a minute.")
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True)
@click.option("--preset", type=click.Choice(sorted(PRESETS)), help="Default: small, or tiny.")
@click.option("--repeats", type=click.IntRange(1), help="Turns. Default: 3, or 1.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--paged/--no-paged", default=None, help="Sample by continuous batching too. Default: on a GPU."
)
@click.option("--parts", default=",".join(PARTS), show_default=True, help="What to measure.")
@click.option("--variants", "names", help="Runs to compare, by name; all by default.")
@click.option("--out", type=click.Path(path_type=Path), help="Default: benchmarks/results.")
def main(
    quick: bool,
    device: str,
    preset: str | None,
    repeats: int | None,
    threads: int,
    paged: bool | None,
    parts: str,
    names: str | None,
    out: Path | None,
) -> None:
    """Compare SeRA runs with the plain DPO run they replace, and their passes with naive ones.

    Results go to benchmarks/results and docs/benchmarks.md, or to --out alone. --quick needs --out.
    """
    wanted = parts.split(",")
    if unknown := set(wanted) - set(PARTS):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; allowed are {', '.join(PARTS)}")
    if quick and out is None:
        raise click.UsageError("--quick measures nothing of worth; give it a folder with --out.")
    sizes = PRESETS[preset or ("tiny" if quick else "small")]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="sera-bench-") as folder:
        turns = repeats or (1 if quick else 3)
        paged = device == "gpu" if paged is None else paged
        bench = Bench(Path(folder), sizes, device, turns, threads, paged)
        try:
            results = bench.measure(wanted, names.split(",") if names else None, _options())
        except RunError as error:
            raise click.ClickException(str(error)) from error
    results["minutes"] = (time.perf_counter() - start) / 60
    table = report.write(results, out or RESULTS)
    if out is None:
        page = ROOT / "docs/benchmarks.md"
        report.into_docs(page, table, results["name"], "growth" in results)
    click.echo(table.read_text(encoding="utf-8"))
    click.echo(f"Written to {table.parent}")


def _options() -> list[str]:
    """The command line's options but for ``--out``, whose folder is nobody's business."""
    rest = sys.argv[1:]
    at = rest.index("--out") if "--out" in rest else len(rest)
    return rest[:at] + rest[at + 2 :]


class Bench:
    """One benchmark.

    Args:
        folder: for models, data and runs; deleted by the caller.
        preset: sizes.
        device: ``cpu`` or ``gpu``.
        repeats: turns of every comparison.
        threads: per process.
        paged: whether generation is measured with continuous batching as well.
    """

    def __init__(
        self,
        folder: Path,
        preset: Preset,
        device: str,
        repeats: int,
        threads: int,
        paged: bool = False,
    ) -> None:
        self.folder, self.preset, self.repeats, self.paged = folder, preset, repeats, paged
        self.device, self.variables = device, environment(device, threads)
        self.threads = threads

    def measure(
        self, parts: list[str], names: list[str] | None, options: list[str]
    ) -> dict[str, Any]:
        """All that is asked for, ready to be written."""
        machine = {**describe(self.device), "threads": self.threads}
        today = datetime.now(UTC).date().isoformat()
        results: dict[str, Any] = {
            "name": f"{today}-{slug(machine)}-{self.preset.name}",
            "date": today,
            "machine": machine,
            "command": f"python -m benchmarks {' '.join(options)}".strip(),
            "preset": self.preset.name,
        }
        assets = self.folder / "assets"
        if {"runs", "steps", "passes"} & set(parts):
            assets.mkdir()
            results["setting"] = make(assets, self.preset)
        if "runs" in parts:
            results["runs"] = self._runs(assets, names)
        if "steps" in parts:
            click.echo("steps ...", err=True)
            given = (str(self.repeats), str(assets))
            results["steps"] = self._alone("steps", *given)
        if "passes" in parts:
            click.echo("passes ...", err=True)
            results["passes"] = measure_passes(
                self.folder / "passes",
                assets,
                self.preset,
                self.repeats,
                self.variables,
                paged=self.paged,
            )
        if "growth" in parts:
            click.echo("growth ...", err=True)
            results["growth"] = self._alone("growth")
        return results

    def _runs(self, assets: Path, names: list[str] | None) -> dict[str, Any]:
        known = variants(self.preset)
        if unknown := set(names or ()) - set(known):
            raise click.BadParameter(f"{', '.join(unknown)}; runs are {', '.join(known)}")
        chosen = [variant for name, variant in known.items() if not names or name in names]

        def measure(variant: Variant, turn: int) -> dict[str, Any]:
            folder = self.folder / f"run-{turn}-{variant.name}"
            found = measure_variant(folder, assets, self.preset, variant, self.variables)
            click.echo(
                f"turn {turn + 1}: {variant.name} {found['seconds']:.1f} s, "
                f"{found['cpu_seconds']:.1f} s of processor time",
                err=True,
            )
            return found

        return interleaved(chosen, self.repeats, measure)

    def _alone(self, part: str, *given: str) -> dict[str, Any]:
        """What a module finds that measures in a process of its own."""
        path = self.folder / f"{part}.json"
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{part}", self.preset.name, *given, str(path)],
            env=self.variables,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RunError(f"{part} left with {done.returncode}:\n{done.stderr[-4000:]}")
        return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
