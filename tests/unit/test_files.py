"""Files appear whole, and nothing is written through a link, a pipe or a device."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from runs_on_disk import write_run

from sera_plugin.commands.audit_table import ranked, write_results
from sera_plugin.commands.cli import sera
from sera_plugin.data.columns import RankedPairs
from sera_plugin.data.store import RunStore
from sera_plugin.runtime.errors import StoreError
from sera_plugin.runtime.files import beside, replacing, write_synced, write_whole

KINDS: dict[str, Callable[[Path, Path], None]] = {
    "a link": lambda path, other: path.symlink_to(other),
    "a link to nowhere": lambda path, other: path.symlink_to(other.with_name("nowhere")),
    "no file": lambda path, _: os.mkfifo(path),
    "a folder": lambda path, _: path.mkdir(),
}
at_every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A file of somebody else, which stays as it is."""
    path = tmp_path / "other"
    path.write_text("theirs")
    return path


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("files") / "out")


def command(*args: str | Path) -> Result:
    return CliRunner().invoke(sera, [*map(str, args)])


def sentence(result: Result) -> str:
    assert result.exit_code == 1, result.exception
    (line,) = result.output.strip().splitlines()
    return line.removeprefix("Error: ")


@at_every_kind
def test_only_a_regular_file_is_replaced(tmp_path: Path, other: Path, kind: str) -> None:
    path = tmp_path / "target"
    KINDS[kind](path, other)
    before = path.lstat()
    with pytest.raises(FileExistsError, match=kind.removesuffix(" to nowhere")):
        write_whole(path, b"ours")
    assert path.lstat() == before
    assert other.read_text() == "theirs"
    assert not (tmp_path / "nowhere").exists()


def test_a_new_file_is_made_where_nothing_stands(tmp_path: Path, other: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(other)
    for path in (link, other):
        with pytest.raises(FileExistsError):
            write_synced(path, b"ours")
    assert other.read_text() == "theirs"


def test_names_can_t_be_guessed_and_fit(tmp_path: Path) -> None:
    for name in ("x", "x" * 255, "日" * 85):
        assert beside(tmp_path / name) != beside(tmp_path / name)
        write_whole(tmp_path / name, b"1")
        write_whole(tmp_path / name, b"22")
        assert (tmp_path / name).read_bytes() == b"22"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_has_the_rights_that_others_get_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = os.umask(0o027)
    try:
        write_whole(path, b"ours")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640

    def half() -> None:
        with replacing(path) as file:
            file.write(b"half of")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        half()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"ours")]


@at_every_kind
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("run.json", lambda store: store.write_run({})),
        ("round-01/summary.json", lambda store: store.update_summary(1, {"kept": 1.0})),
    ],
)
def test_a_run_says_so_too(
    tmp_path: Path, other: Path, kind: str, name: str, write: Callable[[RunStore], None]
) -> None:
    store = RunStore(tmp_path / "out")
    path = store.root / name
    path.parent.mkdir(parents=True)
    KINDS[kind](path, other)
    with pytest.raises(StoreError, match=f"{path.name} can't be written"):
        write(store)
    assert other.read_text() == "theirs"


@at_every_kind
def test_a_report_is_written_over_nothing_else(
    stored: Path, tmp_path: Path, other: Path, kind: str
) -> None:
    path = tmp_path / "page.html"
    KINDS[kind](path, other)
    said = sentence(command("report", stored, "--out", path))
    assert said.startswith((f"{path} can't be written (it is", f"--out {path} is a folder"))
    assert other.read_text() == "theirs"


def test_links_at_names_that_could_be_guessed_are_passed_by(stored: Path, other: Path) -> None:
    guessed = [stored / "sera" / name for name in (".report.html.tmp", "report.html.tmp")]
    guessed += [stored / "export/.round-02-trl.tmp", stored / "export/.round-02-axolotl.tmp"]
    guessed[-1].parent.mkdir()
    for path in guessed:
        path.symlink_to(other)
    assert command("report", stored).exit_code == 0
    for form in ("trl", "axolotl"):
        assert command("export", stored, "--round", "2", "--format", form).exit_code == 0
    store = RunStore(stored)
    (store.root / ".run.json.tmp").symlink_to(other)
    store.write_run({"sera": {}, "seed": 1})
    assert other.read_text() == "theirs"
    assert all(path.is_symlink() for path in guessed)


@at_every_kind
def test_an_export_goes_into_a_new_or_an_empty_folder(
    stored: Path, tmp_path: Path, other: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    KINDS[kind](path, other)
    result = command("export", stored, "--round", "2", "--out", path)
    if kind == "a folder":
        assert result.exit_code == 0, result.output
        assert sorted(p.name for p in path.iterdir()) == ["README.md", "train.jsonl"]
        assert "is there and is not an empty folder" in sentence(
            command("export", stored, "--round", "2", "--out", path)
        )
    else:
        assert str(path) in sentence(result)
    assert other.read_text() == "theirs"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "other"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert command("export", stored, "--round", "2", "--out", ".").exit_code == 0
    assert sorted(p.name for p in Path().iterdir()) == ["README.md", "train.jsonl"]
    assert "not an empty folder" in sentence(command("export", stored, "--round", 2, "--out", "."))


def test_an_audit_writes_through_no_link(tmp_path: Path, other: Path) -> None:
    columns = {
        column.value: ["a"] if column.type == "string" else np.array([1])
        for column in RankedPairs
        if column not in (RankedPairs.RANK, RankedPairs.PREFERENCE_PROBABILITY)
    }
    table = ranked(columns, 0.1)
    for name in ("ranked.parquet", "ranked.jsonl", "summary.json"):
        folder = tmp_path / f"audit {name}"
        folder.mkdir()
        (folder / name).symlink_to(other)
        with pytest.raises(FileExistsError):
            write_results(table, folder, {})
    write_results(table, tmp_path / "new", {})
    assert len(list((tmp_path / "new").iterdir())) == 3
    assert other.read_text() == "theirs"
