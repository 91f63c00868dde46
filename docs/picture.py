"""Draws the picture of the report in these pages: ``python docs/picture.py [RUN]``.

``RUN`` is the run that ``make demo`` leaves, by default ``demo-output/run``. Chromium takes the
picture, so it must be on the machine. Beside the picture stands a digest of what decides how it
looks: the templates, the words of a page, the layout of the plots, and the files of the demo. With
``--check`` nothing is drawn, and the exit status is 1 if the picture is not of this version.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sera_plugin.commands.report.figures import layout
from sera_plugin.commands.report.run_page import write_report
from sera_plugin.data.reader import RunFiles

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs/images/report.png"
DIGEST = PICTURE.with_suffix(".sha256")
TEMPLATES = ROOT / "sera_plugin/commands/report/templates"
DEMO = tuple(ROOT / "example_configs" / name for name in ("make_demo.py", "demo.yml"))
WIDTH, HEIGHT = 1180, 1990
LEFT_OUT = """
#grid-2, #grid-3, figure:nth-of-type(n+3), .card:nth-of-type(n+3), .more, #x-pairs ~ *, footer
"""
"""What is not in the picture: signals, decisions, most plots and pairs, and what is below them."""


def page_of(run: Path, folder: Path) -> str:
    """The report of a run, written into ``folder``; it names two parts of the run's path."""
    found = RunFiles.open(run)
    out = folder / "report.html"
    write_report(found, out)
    return out.read_text(encoding="utf-8").replace(f"{found.output_dir.parents[1]}/", "")


def digest() -> str:
    """A digest of what decides how the picture looks, whatever numbers a machine computes."""
    sys.path.insert(0, str(ROOT / "tests/support"))
    from runs_on_disk import write_run

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = write_run(folder / "demo-output/run", evaluated=True, filled=4, signals=True)
        page = page_of(run, folder)
    words = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    parts = (
        re.sub(r"sha256-[\w+/=]+|\d[\d.,]*", "0", words),
        json.dumps(layout("x", "y"), sort_keys=True),
        *(path.read_text(encoding="utf-8") for path in (*sorted(TEMPLATES.iterdir()), *DEMO)),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def draw(run: Path, chromium: str) -> None:
    """Write the picture of a run's report."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        page = page_of(run, folder).replace(
            "</style>", f"{LEFT_OUT} {{ display: none !important; }}</style>"
        )
        (folder / "report.html").write_text(page, encoding="utf-8")
        subprocess.run(
            [
                chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-background-networking", "--hide-scrollbars",
                "--blink-settings=preferredColorScheme=1", f"--user-data-dir={folder / 'profile'}",
                "--virtual-time-budget=10000", f"--window-size={WIDTH},{HEIGHT}",
                f"--screenshot={PICTURE}", (folder / "report.html").as_uri(),
            ],
            check=True, capture_output=True, timeout=180,
        )  # fmt: skip
    DIGEST.write_text(f"{digest()}\n", encoding="utf-8")


def main() -> int:
    arguments = sys.argv[1:]
    if arguments == ["--check"]:
        if DIGEST.read_text(encoding="utf-8").strip() == digest():
            return 0
        print(f"{PICTURE.relative_to(ROOT)} is of an earlier report; run make picture")
        return 1
    names = ("chromium", "google-chrome", "chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        print("The picture needs Chromium, which is not on this machine.")
        return 1
    draw(Path(arguments[0] if arguments else "demo-output/run"), chromium)
    print(f"{PICTURE.relative_to(ROOT)} is drawn anew")
    return 0


if __name__ == "__main__":
    sys.exit(main())
