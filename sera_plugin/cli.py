"""``axolotl sera``: commands beside the host's own. Heavy imports stand inside the functions."""

from __future__ import annotations

import json
import os

import click


@click.group()
def sera() -> None:
    """SeRA: preference tuning that reviews and renews its own data."""


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
    cli.commands["train"].main(args=ctx.args, prog_name="axolotl train")


@sera.command()
def schema() -> None:
    """Print the JSON schema of the `sera:` block, which `axolotl config-schema` can't show."""
    from sera_plugin.config import SeraConfig

    click.echo(json.dumps(SeraConfig.model_json_schema(), indent=2))
