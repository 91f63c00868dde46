"""The demo from its first command to its last, and what it prints against what was trained on."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
from command_line import RunCli
from examples import EXAMPLES

pytestmark = pytest.mark.cli

CONFIG = EXAMPLES / "demo.yml"


class Demo(NamedTuple):
    folder: Path
    trained: str
    plain: str
    shown: str


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, run_cli: RunCli, run_python: RunCli) -> Demo:
    """The commands of `make demo`, one after the other."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_python(EXAMPLES / "make_demo.py")
        return Demo(
            folder / "demo-output",
            run_cli("train", CONFIG, "--launcher", "python"),
            run_python(EXAMPLES / "train_plain.py"),
            run_python(EXAMPLES / "show_demo.py"),
        )


@pytest.fixture(scope="module")
def zoo() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return importlib.import_module("make_demo")


def test_both_runs_make_the_same_number_of_updates(demo: Demo) -> None:
    assert "120/120" in demo.trained
    assert "120/120" in demo.plain
    assert not (demo.folder / "plain" / "sera").exists()


def table_rows(shown: str) -> dict[int, list[int]]:
    """Numbers of the table of rounds, by round."""
    cells = [re.findall(r"\d+", line) for line in shown.splitlines() if re.match(r"│ +\d", line)]
    return {int(first): [int(cell) for cell in more] for first, *more in cells}


def test_the_table_counts_what_was_trained_on(demo: Demo, zoo: ModuleType, run_cli: RunCli) -> None:
    rounds = table_rows(demo.shown)
    asked = {question.text: question for question in zoo.questions()}
    assert sorted(rounds) == [1, 2, 3]
    for number in (2, 3):
        out = demo.folder / f"round-{number}"
        more = ("--round", str(number), "--format", "trl", "--out", out)
        run_cli("sera", "export", demo.folder / "run", *more)
        rows = pq.read_table(next(out.rglob("*.parquet"))).to_pylist()
        found = {True: {"offline": 0, "bootstrapped": 0}, False: {"offline": 0, "bootstrapped": 0}}
        for row in rows:
            text = re.search(r"user\n(.*?)<\|im_end\|>", row["prompt"])
            assert text
            chosen, rejected = (asked[text[1]].is_true(row[s]) for s in ("chosen", "rejected"))
            if chosen != rejected:
                found[chosen][row["source"]] += 1
        kept, new, filled, whole, swapped, right, wrong = rounds[number]
        assert (kept + new + filled, whole) == (len(rows), len(rows))
        assert filled == sum(row["filled"] for row in rows)
        assert new == sum(row["source"] == "bootstrapped" for row in rows)
        assert swapped == found[False]["offline"]
        assert right == found[True]["bootstrapped"]
        assert wrong == found[False]["bootstrapped"]


def test_it_prints_true_answers_of_plain_dpo_beside_those_of_sera(demo: Demo) -> None:
    shares = re.search(
        r"(\d+)% before, (\d+)% after\s+plain DPO, (\d+)%\s+after\s+SeRA",
        " ".join(demo.shown.split()),
    )
    assert shares
    before, plain, sera = map(int, shares.groups())
    assert before < plain
    assert before < sera
