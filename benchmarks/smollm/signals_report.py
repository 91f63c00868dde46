"""The tables of signals in docs/language-model.md, from the stored results.

python -m benchmarks.smollm.signals_report
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.smollm.analysis import table
from benchmarks.smollm.confirm import FIRST, audit, confirmation
from benchmarks.smollm.page import fill
from benchmarks.smollm.signals import RESULTS

PAGE = Path("docs/language-model.md")


def main() -> None:
    """Put the tables of the stored results into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    lines = [json.loads(line) for line in given.results.read_text().splitlines()]
    later = len(lines) > FIRST
    parts = {
        "signals": table(lines[:FIRST]),
        "confirmation": confirmation(lines) if later else "No pair is stored after the first.",
        "audit": audit(lines) if later else "No pair is stored after the first.",
    }
    for name, text in parts.items():
        fill(given.page, name, text)


if __name__ == "__main__":
    main()
