"""``python -m sera_plugin COMMAND`` is ``axolotl sera COMMAND`` without the host's banner."""

from sera_plugin.commands.cli import sera

if __name__ == "__main__":
    sera(prog_name="python -m sera_plugin")
