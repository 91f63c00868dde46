"""What commands import before they do anything, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from runs_on_disk import write_run

pytestmark = pytest.mark.cli


def test_commands_start_without_torch() -> None:
    code = (
        "import sys, sera_plugin, sera_plugin.commands.cli\n"
        "print(sorted({'torch', 'transformers', 'axolotl', 'pandas'} & set(sys.modules)))\n"
        "sera_plugin.SeRAPlugin\n"
        "print('axolotl' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "[]"
    assert done.stdout.splitlines()[-1] == "True"


def test_report_starts_without_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "out")
    code = (
        "import sys\nfrom sera_plugin.commands.cli import sera\n"
        f"sera(['report', {str(run)!r}], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'axolotl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
