"""Commands on run folders that were damaged in ways made at random: they work, or say one sentence.

``SERA_FUZZ=3000`` sets how many; the default fits into the tests of every day.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st
from runs_on_disk import write_run

from sera_plugin.commands.cli import sera

EXAMPLES = int(os.environ.get("SERA_FUZZ", "60"))
PATIENCE = 60
"""Seconds after which a command counts as one that waits."""

VALUES: list[Any] = [
    None, True, 0, -1, 5, 1.5, 10**30, 10**400, float("nan"), float("inf"), "", "x", "3", "\ud800",
    "\0", "a" * 5000, "<script>", [], [None], ["x"], [5], {}, {"a": 1}, {"step": "x"},
]  # fmt: skip
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
VALUES.append(DEEP)

CONTENTS: list[bytes] = [
    b"", b"\0", b"5", b"null", b"[]", b"{}", b"[5]", b'"x"', b"{", b"[" * 100_000, b"\xff\xfe{}",
    b'{"sera": 5}', b'{"log_history": 5}', b"1" * 5000, b"PAR1", b"\n\n", b'{"a": NaN}',
]  # fmt: skip

COLUMNS: list[pa.Array] = [
    pa.array(["x"]), pa.array(["7"]), pa.array([5]), pa.array([-(2**62)]), pa.array([2.5]),
    pa.array([float("nan")]), pa.array([float("inf")]), pa.array([1e300]), pa.array([True]),
    pa.nulls(1), pa.array([None], pa.string()), pa.array([None], pa.float64()), pa.array([[1, 2]]),
    pa.array([[None]]), pa.array([["x"]]), pa.array([[]], pa.list_(pa.int64())),
    pa.array([{"a": 1}]),
    pa.array([b"\xff\xfe"]), pa.array([b"\xff\xfe"]).view(pa.string()),
    pa.array(["x"]).dictionary_encode(), pa.array([1], pa.timestamp("s")), pa.array([""]),
]  # fmt: skip


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values within a value from JSON."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    if isinstance(value, list):
        for number, inner in enumerate(value[:3]):
            yield from leaves(inner, (*path, number))


def with_another(draw: st.DrawFn, value: Any) -> Any:
    """``value`` with one of its values replaced or left out."""
    paths = [path for path in leaves(value) if path]
    if not paths:
        return draw(st.sampled_from(VALUES))
    *outer, last = draw(st.sampled_from(paths))
    place = value
    for key in outer:
        place = place[key]
    if draw(st.integers(0, 3)) == 0:
        del place[last]
    else:
        place[last] = draw(st.sampled_from(VALUES))
    return value


def damaged_json(draw: st.DrawFn, path: Path) -> str:
    path.write_text(json.dumps(with_another(draw, json.loads(path.read_bytes()))))
    return "another value"


def damaged_lines(draw: st.DrawFn, path: Path) -> str:
    lines = path.read_text().splitlines()
    number = draw(st.integers(0, len(lines) - 1))
    kind = draw(st.sampled_from(["value", "content", "without", "twice"]))
    if kind == "value":
        lines[number] = json.dumps(with_another(draw, json.loads(lines[number])))
    elif kind == "content":
        lines[number] = draw(st.sampled_from(CONTENTS)).decode("latin-1")
    else:
        lines[number : number + 1] = [] if kind == "without" else [lines[number]] * 2
    path.write_text("\n".join(lines) + "\n", encoding="latin-1")
    return f"line {kind}"


def damaged_table(draw: st.DrawFn, path: Path) -> str:
    table = pq.read_table(path)
    place = draw(st.integers(0, table.num_columns - 1))
    name = table.column_names[place]
    kind = draw(st.sampled_from(["column", "cell", "without", "renamed", "none", "twice", "one"]))
    if kind in ("column", "cell"):
        other = draw(st.sampled_from(COLUMNS))
        whole = pa.concat_arrays([other] * max(table.num_rows, 1)).slice(0, table.num_rows)
        if kind == "cell" and table.num_rows:
            try:
                first = other.cast(table.schema.field(place).type)
            except (pa.ArrowException, NotImplementedError):
                first = pa.nulls(1, table.schema.field(place).type)
            chunks = [first, *table.column(place).slice(1).chunks]
            table = table.set_column(place, name, pa.chunked_array(chunks))
        else:
            table = table.set_column(place, name, whole)
    elif kind == "without":
        table = table.drop_columns([name])
    elif kind == "renamed":
        other_name = draw(st.sampled_from(table.column_names))
        table = table.rename_columns(
            [other_name if n == place else old for n, old in enumerate(table.column_names)]
        )
    else:
        rows = np.arange(table.num_rows)
        rows = {"none": rows[:0], "twice": np.repeat(rows, 2), "one": rows[:1]}[kind]
        table = table.take(pa.array(rows))
    pq.write_table(table, path)
    return f"{kind} {name}"


def damaged_bytes(draw: st.DrawFn, path: Path) -> str:
    content = path.read_bytes()
    # A byte within a parquet file may be anything to its reader, which is not ours.
    kinds = ["whole", "cut"] if path.suffix == ".parquet" else ["whole", "cut", "byte"]
    kind = draw(st.sampled_from(kinds))
    if kind == "whole":
        content = draw(st.sampled_from(CONTENTS))
    else:
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        other = b"" if kind == "cut" else bytes([draw(st.integers(0, 255))]) + content[place + 1 :]
        content = content[:place] + other
    path.write_bytes(content)
    return kind


def another_kind(draw: st.DrawFn, path: Path) -> str:
    kind = draw(st.sampled_from(["nothing", "folder", "pipe", "loop", "device"]))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "nothing":
        path.symlink_to(path if kind == "loop" else "/dev/zero")
    return kind


BY_SUFFIX: dict[str, Callable[[st.DrawFn, Path], str]] = {
    ".json": damaged_json,
    ".jsonl": damaged_lines,
    ".parquet": damaged_table,
}


def damage(draw: st.DrawFn, run: Path) -> None:
    """Damage one file of the run."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    path = draw(st.sampled_from(files))
    ways = [damaged_bytes, another_kind, *[BY_SUFFIX[path.suffix]] * 6]
    try:
        done = draw(st.sampled_from(ways))(draw, path)
    except (ValueError, OSError):
        done = damaged_bytes(draw, path)  # it was damaged before
    event(f"{path.suffix}: {done.split()[0]}")
    note(f"{path.relative_to(run)}: {done}")


COMMANDS: list[tuple[str, ...]] = [
    ("report", "RUN"),
    ("report", "RUN", "--out", "OUT/" + "x" * 300),
    *(
        ("export", "RUN", "--round", number, "--format", form, "--out", f"OUT/{number}{form}")
        for number in ("1", "2", "3")
        for form in ("axolotl", "trl")
    ),
    ("plan", "OUT/none.yml", "--measured", "RUN"),
]


def check(command: tuple[str, ...], run: Path, out: Path) -> None:
    """Run a command in this process; it works, or says one sentence."""
    args = [arg.replace("RUN", str(run)).replace("OUT", str(out)) for arg in command]
    signal.alarm(PATIENCE)
    result = CliRunner().invoke(sera, args)
    signal.alarm(0)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1), result.output
    if result.exit_code:
        (line,) = result.output.strip().splitlines()
        assert line.startswith("Error: ")
        assert line.isprintable()
        assert line.endswith(".")
        assert len(line) < 1000
        event("refused")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("damaged") / "run", count=8)
    (run / "checkpoint-10").mkdir()
    shutil.copy(run / "sera/log.json", run / "checkpoint-10/trainer_state.json")
    return run


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError("the command waits")

    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES,
    suppress_health_check=list(HealthCheck),
    derandomize=EXAMPLES == 60,
)
@given(st.data())
def test_a_damaged_run_is_shown_or_refused_with_one_sentence(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("run")
    run, out = folder / "run", folder / "out"
    shutil.copytree(whole, run)
    for _ in range(data.draw(st.integers(1, 2))):
        damage(data.draw, run)
    for command in COMMANDS:
        check(command, run, out)
    shutil.rmtree(folder)


LONG = "x" * 300


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("log.json", "5", "(it holds no log history)."),
        ("run.json", '{"sera": {}, "pairs": "8"}', "pairs: Input should be a valid integer)."),
        (
            "round-02/summary.json",
            '{"kept": "6"}',
            "(kept is no number).",
        ),
        (
            "round-02/bootstrapped.jsonl",
            '{"prompt": "x"}',
            "(a pair lacks its chosen).",
        ),
        ("pairs.parquet", ("prompt", None), "(a row has no prompt)."),
        ("pairs.parquet", ("chosen_tokens", "many"), "Failed to parse string: 'many' as a scalar"),
        ("round-02/margins.parquet", ("kept", ()), ""),
    ],
)
def test_what_is_damaged_is_named(
    whole: Path, tmp_path: Path, file: str, content: str | tuple[str, Any], said: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    path = run / "sera" / file
    if isinstance(content, str):
        path.write_text(content)
    else:
        name, value = content
        table = pq.read_table(path)
        place = table.column_names.index(name)
        values = [[value] * table.num_rows]
        pq.write_table(
            table.drop_columns([name]) if value == () else table.set_column(place, name, values),
            path,
        )
    result = CliRunner().invoke(sera, ["report", str(run)])
    assert result.exit_code == 1
    (line,) = result.output.strip().splitlines()
    assert line.startswith(f"Error: {path} can't be read (")
    assert said in line


@pytest.mark.parametrize(
    "args",
    [
        ("report", LONG),
        ("report", "RUN", "--out", LONG),
        ("export", "RUN", "--round", "2", "--out", LONG),
        ("export", LONG, "--round", "2"),
        ("plan", LONG),
        ("plan", "none.yml", "--measured", LONG),
        ("audit", LONG),
    ],
)
def test_names_that_no_file_can_have(whole: Path, args: tuple[str, ...]) -> None:
    result = CliRunner().invoke(sera, [arg.replace("RUN", str(whole)) for arg in args])
    assert result.exit_code == 1, result.exception
    (line,) = result.output.strip().splitlines()
    assert LONG in line
    assert "File name too long" in line


def test_a_whole_run_is_shown(whole: Path, tmp_path: Path) -> None:
    refused = []
    for command in COMMANDS:
        args = [arg.replace("RUN", str(whole)).replace("OUT", str(tmp_path)) for arg in command]
        if CliRunner().invoke(sera, args).exit_code:
            refused.append(command)
    assert refused == [COMMANDS[1], COMMANDS[-1]]
