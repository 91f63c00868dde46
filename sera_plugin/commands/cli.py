"""``axolotl sera``: commands beside the host's own. Heavy imports stand inside the functions."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click


@click.group()
def sera() -> None:
    """SeRA: preference tuning that reviews and renews its own data."""


def _one_sentence(command: Callable[..., None]) -> Callable[..., None]:
    """End the process with code 1 and the sentence of an error that the user can mend."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        from sera_plugin.runtime.errors import SeraError

        try:
            command(*args, **options)
        except SeraError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.filename is None:
                raise
            raise click.ClickException(
                f"{error.filename} can't be used ({error.strerror})."
            ) from error

    return run


_to_file = click.option(
    "--out", type=click.Path(path_type=Path), help="Write JSON to this file, and no banner before."
)


class _HandedOn(click.Command):
    """A command that hands all arguments on as they are, `--` included."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        ours = [arg for arg in args[:end] if arg in {"--sera", "--no-sera", "--help"}]
        rest = [arg for arg in args[:end] if arg not in ours] + args[end:]
        super().parse_args(ctx, ours)
        ctx.args = rest
        return rest


@sera.command(cls=_HandedOn, options_metavar="[--no-sera] CONFIG [OPTIONS OF axolotl train]")
@click.option("--sera/--no-sera", "enabled", default=True, help="Switch SeRA off for this run.")
@click.pass_context
def train(ctx: click.Context, enabled: bool) -> None:
    """Run `axolotl train` with the same arguments."""
    from axolotl.cli.main import cli

    from sera_plugin.plugin import SWITCH

    if not enabled:
        os.environ[SWITCH] = "off"
    args = ctx.args
    if not any("torchrun" in arg for arg in args):
        # accelerate, the default launcher, prints a traceback of its own if a run fails.
        args = [*args, "--quiet"]
    cli.commands["train"].main(args=args, prog_name="axolotl train")


@sera.command()
@click.option("--markdown", is_flag=True, help="Tables of all keys in place of JSON.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write it to this file, where no banner stands."
)
@_one_sentence
def schema(markdown: bool, out: Path | None) -> None:
    """Print the JSON schema of the `sera:` block, which `axolotl config-schema` can't show."""
    from sera_plugin.commands.answer import answer, others_on_stderr

    with others_on_stderr():
        from sera_plugin.commands import schema as page

        text = page.markdown() if markdown else page.json_schema()
    answer(text, out)


@sera.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Default: RUN_DIR/sera/report.html.")
@click.option("--open", "show", is_flag=True, help="Open the page in a browser.")
@_one_sentence
def report(run_dir: Path, out: Path | None, show: bool) -> None:
    """Write one HTML file that shows what a run did, finished or not.

    RUN_DIR is the run's output_dir. The page needs no network.
    """
    from sera_plugin.commands.report.run_page import write_report
    from sera_plugin.data.reader import RunFiles

    run = RunFiles.open(run_dir)
    written = write_report(run, out or run.root / "report.html")
    click.echo(f"{written.page} ({written.size / 1e6:.1f} MB)")
    if written.rest is not None:
        click.echo(f"{written.rest} holds all pairs; the page shows part of them.")
    if show:
        click.launch(written.page.resolve().as_uri())


@sera.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--round", "number", type=click.IntRange(min=1), required=True, help="Which round.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["axolotl", "trl"]),
    default="axolotl",
    show_default=True,
    help="JSON lines for Axolotl's datasets, or parquet for TRL's DPOTrainer.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Default: RUN_DIR/export/round-NN-FORMAT."
)
@click.option("--push-to-hub", "repository", metavar="REPO", help="Upload to this dataset, too.")
@click.option("--public", is_flag=True, help="Make a new dataset on the hub public.")
@_one_sentence
def export(
    run_dir: Path, number: int, form: str, out: Path | None, repository: str | None, public: bool
) -> None:
    """Write the data of a round as a dataset, with a dataset card.

    RUN_DIR is the run's output_dir. Plain DPO trains on the dataset.
    """
    from sera_plugin.commands.export import export_round, push
    from sera_plugin.data.reader import RunFiles

    run = RunFiles.open(run_dir)
    folder = out or run.root.parent / "export" / f"round-{number:02d}-{form}"
    exported = export_round(run, number, form, folder, repository)
    counts = ", ".join(f"{count:,} {source}" for source, count in exported.counts.items())
    click.echo(f"{exported.folder}: {counts} pairs")
    if repository is not None:
        click.echo(push(exported.folder, repository, private=not public))


@sera.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--policy", metavar="MODEL", help="A trained model. Default: that in output_dir.")
@click.option("--adapter", metavar="FOLDER", help="A trained adapter on base_model instead.")
@click.option("--out", type=click.Path(path_type=Path), help="Default: OUTPUT_DIR-audit.")
@click.option(
    "--margin",
    type=click.Choice(["sum", "mean"]),
    default="sum",
    show_default=True,
    help="Log-ratios summed over an answer, or their mean per token.",
)
@click.option(
    "--keep",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    help="Also write the least suspicious share of the pairs, as kept.jsonl.",
)
@click.option("--truth", metavar="COLUMN", help="Column that is true where a label is wrong.")
@_one_sentence
def audit(**options: Any) -> None:
    """Rank the labels of a dataset by how much a trained policy disagrees with them.

    CONFIG is the YAML of a DPO or IPO run; its base_model is the reference. Nothing is trained.
    """
    from sera_plugin.commands import audit as auditing
    from sera_plugin.commands.terminal import show_audit

    show_audit(auditing.audit(auditing.Request(**options)))


@sera.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@click.option("--zero", type=click.IntRange(0, 3), help="ZeRO stage, in place of the config's.")
@click.option(
    "--measured",
    type=click.Path(path_type=Path),
    metavar="RUN_DIR",
    help="Take tokens per second from this run.",
)
@click.option("--scoring", type=click.FloatRange(min=0, min_open=True), help="Tokens per second.")
@click.option("--sampling", type=click.FloatRange(min=0, min_open=True), help="Tokens per second.")
@click.option("--training", type=click.FloatRange(min=0, min_open=True), help="Tokens per second.")
@click.option("--json", "as_json", is_flag=True, help="JSON in place of tables.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write JSON to this file, where no banner stands.",
)
@_one_sentence
def plan(
    config: Path,
    gpus: int,
    zero: int | None,
    measured: Path | None,
    scoring: float | None,
    sampling: float | None,
    training: float | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Say what a run would do and cost, or why it would be refused.

    Reads the YAML, the data and the model's config; needs no GPU and loads no weights.
    Tokens per second are those of all GPUs together; a measured run's grow with the processes.
    """
    from sera_plugin.commands.answer import answer, others_on_stderr

    with others_on_stderr():
        from sera_plugin.commands.plan_inputs import plan_run
        from sera_plugin.commands.speed import Speed
        from sera_plugin.commands.terminal import plan_json, show_plan
        from sera_plugin.data.reader import RunFiles

        known = Speed.measured(RunFiles.open(measured), gpus) if measured else Speed()
        speed = Speed(
            scoring or known.scoring,
            sampling or known.generation,
            training or known.training,
            known.note,
        )
        planned = plan_run(config, processes=gpus, zero=zero, speed=speed)
    if as_json or out:
        answer(plan_json(planned), out)
    if not as_json:
        show_plan(planned)


@sera.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("more", type=float, nargs=-1, metavar="--alpha ALPHA [ALPHA ...]")
@click.option("--alpha", type=float, multiple=True, required=True, help="How far beyond; above 0.")
@click.option("--out", type=click.Path(path_type=Path), help="Default: extrapolated in the run.")
@click.option("--eval", "evaluate", is_flag=True, help="Loss and accuracy on the evaluation pairs.")
@_one_sentence
def extrapolate(
    run: Path, more: tuple[float, ...], alpha: tuple[float, ...], out: Path | None, evaluate: bool
) -> None:
    """Write a run's model moved on by ALPHA times what training changed in it.

    RUN is the run's output_dir, or its YAML. θ + α·(θ − θ_start) is ExPO; nothing is trained.
    """
    from sera_plugin.commands.extrapolate import run_command

    run_command(run, [*alpha, *more], out, evaluate)
