"""``axolotl sera``: commands beside the host's own. Heavy imports stand inside the functions."""

from __future__ import annotations

import json
import os

import click


@click.group()
def sera() -> None:
    """SeRA: preference tuning that reviews and renews its own data."""


@sera.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": [],
    },
)
@click.option("--sera/--no-sera", "enabled", default=True)
@click.pass_context
def train(ctx: click.Context, enabled: bool) -> None:
    """Run `axolotl train` with the same arguments; `--no-sera` switches SeRA off for this run."""
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
