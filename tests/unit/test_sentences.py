"""What a process shows of an error that nothing catches: of ours its sentence, of others all."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from warm import Commands

from sera_plugin.runtime import errors
from sera_plugin.runtime.errors import SeraConfigError, SeraError, raised

pytestmark = pytest.mark.cli
SENTENCE = "sera.keep: 3 is not allowed."
LOGGER = """
    def told(kind, error, trace, before=sys.excepthook):
        traceback.print_exception(kind, error, trace)
        print("the logger knows", kind.__name__)
        before(kind, error, trace)
    sys.excepthook = told
"""
"""As wandb does: prints, and calls the hook before it."""


@pytest.fixture
def ended(commands: Commands, tmp_path: Path) -> Callable[..., str]:
    """Run a process that does ``more`` and raises, and return what it said."""

    def run(raising: str, more: str = "", **env: str) -> str:
        script = tmp_path / "script.py"
        script.write_text(
            "import sys, traceback\n"
            "from sera_plugin.runtime.endings import end_with_sentences\n"
            "from sera_plugin.runtime.errors import *\n"
            f"end_with_sentences()\n{textwrap.dedent(more)}\nraise {raising}\n"
        )
        done = commands.command(tmp_path / "log", ["python", str(script)], env, 60)
        assert done.code == 1
        return done.output.strip()

    return run


def test_ours_is_a_sentence_alone(ended: Callable[..., str]) -> None:
    (line,) = ended(f"SeraConfigError({SENTENCE!r})").splitlines()
    assert line.endswith(SENTENCE)


def test_anything_else_keeps_its_traceback(ended: Callable[..., str]) -> None:
    said = ended("ValueError('theirs')")
    assert said.startswith("Traceback (most recent call last):")
    assert said.endswith("ValueError: theirs")


def test_a_logger_learns_of_it_and_does_not_say_it(ended: Callable[..., str]) -> None:
    said = ended(f"SeraConfigError({SENTENCE!r})", LOGGER + "    end_with_sentences()\n")
    known, line = said.splitlines()
    assert known == "the logger knows SeraConfigError"
    assert line.endswith(SENTENCE)


@pytest.mark.parametrize(
    ("kind", "rank", "told", "says"),
    [
        ("SeraConfigError", "0", True, True),
        ("SeraConfigError", "1", True, False),
        ("FailedElsewhereError", "0", False, True),
        ("FailedElsewhereError", "1", False, False),
    ],
)
def test_one_rank_says_it_and_the_launcher_has_it(
    ended: Callable[..., str], tmp_path: Path, kind: str, rank: str, told: bool, says: bool
) -> None:
    file = tmp_path / "error.json"
    env = {"RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_ERROR_FILE": str(file)}
    said = ended(f"{kind}({SENTENCE!r})", **env)
    assert said.count(SENTENCE) == says
    assert "Traceback" not in said
    assert file.exists() == told
    if told:
        assert json.loads(file.read_text())["message"]["message"] == SENTENCE


def test_a_rank_speaks_for_itself_where_no_launcher_does(ended: Callable[..., str]) -> None:
    assert ended(f"SeraConfigError({SENTENCE!r})", LOCAL_RANK="1").endswith(SENTENCE)


def test_all_of_our_errors_are_of_one_kind_and_of_python_s_own() -> None:
    kinds = [
        kind
        for name, kind in vars(errors).items()
        if name.endswith("Error") and isinstance(kind, type)
    ]
    assert len(kinds) > 8
    assert all(issubclass(kind, SeraError) for kind in kinds)
    assert issubclass(SeraConfigError, ValueError)


def test_a_user_s_function_is_named_with_its_line() -> None:
    try:
        json.loads("{")
    except ValueError as error:
        said = raised(error)
    assert said.startswith("raised JSONDecodeError: Expecting property name")
    assert "line" in said.rpartition(".py, ")[2]
