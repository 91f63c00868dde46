"""Artifacts: what is written reads back equal, and nothing is lost or left half done."""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sera_plugin.data import store as store_module
from sera_plugin.data.margins import PairLogps
from sera_plugin.data.rounds import RoundRow
from sera_plugin.data.store import MANIFEST, RunStore
from sera_plugin.data.tables import (
    ReviewTable,
    RoundRecord,
    parquet_bytes,
    read_record,
    round_files,
)
from sera_plugin.runtime.errors import StoreError

NUMBERS = [
    field.name for field in fields(ReviewTable) if field.name in ("margin", "ensembled", "score")
]


def table_of(count, seed=0):
    draw = np.random.default_rng(seed)
    ids = tuple(f"{i:024x}" for i in range(count))
    columns = draw.normal(size=(6, count)) * 1e3
    return ReviewTable(
        ids,
        PairLogps(ids, columns[0], columns[1]),
        PairLogps(ids, columns[2], columns[3]),
        columns[4],
        columns[5],
        draw.random(count) < 0.5,
        columns[5] + 1,
        draw.random(count) < 0.1,
        draw.integers(0, 9, count).astype(np.int32),
    )


ROWS = [
    RoundRow("a/offline", "a"),
    RoundRow("b/policy", "b", (1, 2, 2**40), (), -1.25, -0.1),
    RoundRow("a/offline/2", "a", flipped=True),
]
RECORD = RoundRecord(table_of(3), ROWS)


def assert_equal(found, expected):
    assert found.rows == expected.rows
    here, there = found.table, expected.table
    assert here.ids == there.ids
    for side in ("policy", "ratios"):
        one, other = getattr(here, side), getattr(there, side)
        assert one.ids == other.ids
        np.testing.assert_array_equal(one.chosen, other.chosen)
        np.testing.assert_array_equal(one.rejected, other.rejected)
    for name in NUMBERS:
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))
        assert getattr(here, name).dtype == np.float64
    for name in ("kept", "flipped"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))
        assert getattr(here, name).dtype == np.bool_
    np.testing.assert_array_equal(here.measured_in, there.measured_in)


def tree(root):
    """Every file below ``root`` with its bytes."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_a_round_reads_back_equal(tmp_path):
    store = RunStore(tmp_path)
    folder = store.write_round(2, RECORD, [], {"round": 2.0})
    assert folder == tmp_path / "sera" / "round-02"
    assert_equal(store.read_round(2), RECORD)


def test_a_round_of_a_version_that_did_not_know_who_wrote_an_answer(tmp_path):
    rows = [replace(row, chosen_source="policy", rejected_source="policy") for row in RECORD.rows]
    files = round_files(replace(RECORD, rows=rows), [], [])
    assert read_record(files).rows == rows
    older = pq.read_table(io.BytesIO(files["rows.parquet"])).drop_columns(
        ["chosen_source", "rejected_source"]
    )
    assert read_record(files | {"rows.parquet": parquet_bytes(older)}).rows == RECORD.rows


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.builds(
            RoundRow,
            st.text("0123456789abcdef/-", min_size=1),
            st.text("0123456789abcdef-", min_size=1),
            st.none() | st.lists(st.integers(0, 2**31)).map(tuple),
            st.none() | st.lists(st.integers(0, 2**31)).map(tuple),
            st.none() | st.floats(allow_nan=False),
            st.none() | st.floats(allow_nan=False),
        )
    ),
    arrays(np.float64, 4, elements=st.floats()),
)
def test_any_round_reads_back_equal(tmp_path_factory, rows, numbers):
    table = table_of(4)
    record = RoundRecord(replace(table, margin=numbers, ensembled=-numbers), rows)
    store = RunStore(tmp_path_factory.mktemp("run"))
    store.write_round(3, record, [], {})
    assert_equal(store.read_round(3), record)


def test_a_round_is_replaced_whole(tmp_path):
    store = RunStore(tmp_path)
    store.write_round(2, RECORD, [{"prompt": "old"}], {"round": 2.0, "old": 1.0})
    (store.round_dir(2) / "extra").write_text("old")
    newer = RoundRecord(table_of(5, seed=1), ROWS[:1])
    store.write_round(2, newer, [{"prompt": "new"}], {"round": 2.0})
    assert_equal(store.read_round(2), newer)
    assert not any("old" in bytes_.decode("latin1") for bytes_ in tree(tmp_path).values())
    assert [path.name for path in store.root.iterdir()] == ["round-02"]


def test_a_round_that_fails_on_the_way_leaves_the_earlier_one(tmp_path):
    store = RunStore(tmp_path)
    store.write_round(2, RECORD, [], {"round": 2.0})
    before = tree(store.round_dir(2))

    def broken():
        yield {"prompt": "first"}
        raise RuntimeError("no more pairs")

    with pytest.raises(RuntimeError, match="no more pairs"):
        store.write_round(2, RoundRecord(table_of(5), []), broken(), {})
    assert tree(store.round_dir(2)) == before
    # What was left over does not get in the way.
    store.write_round(2, RECORD, [], {"round": 2.0})
    assert_equal(store.read_round(2), RECORD)


def test_a_round_that_was_never_written_is_absent(tmp_path):
    store = RunStore(tmp_path)
    assert store.read_round(1) is None
    store.update_summary(1, {"seconds_training": 1.5})
    assert store.read_round(1) is None


HOSTILE = {
    "controls": "".join(map(chr, range(32))) + "\x7f\x85",
    "lines": "one\ntwo\r\nthree\rfour\u2028five\u2029six\vseven\feight\x1cnine",
    "surrogates": "\ud800 \udfff \udc80",
    "terminal": "\x1b[2J\x1b]0;title\x07\x9b31m",
    "json": '"},{"prompt": "injected"}\n{"a": 1}',
    "letters": "日本語 🙂 e\u0301 \u202e\ufeff",
    "long": "x" * 1_000_000,
    "nul": "a\0b",
}


def test_hostile_text_reads_back_equal_one_object_a_line(tmp_path):
    store = RunStore(tmp_path)
    pairs = [{"prompt": text, "chosen": name, "round": 2} for name, text in HOSTILE.items()]
    folder = store.write_round(2, RECORD, pairs, {})
    raw = (folder / "bootstrapped.jsonl").read_bytes()
    # A terminal that shows the file must see nothing but printable ASCII.
    assert set(raw) <= {*range(32, 127), ord("\n")}
    lines = raw.decode("ascii").splitlines()
    assert [json.loads(line) for line in lines] == pairs
    assert raw.count(b"\n") == len(pairs)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.dictionaries(st.text(st.characters()), st.text(st.characters()), max_size=3)))
def test_any_text_reads_back_equal(tmp_path_factory, pairs):
    store = RunStore(tmp_path_factory.mktemp("run"))
    folder = store.write_round(2, RECORD, pairs, {})
    lines = (folder / "bootstrapped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == pairs


def test_every_answer_that_competed_reads_back_equal(tmp_path):
    answers = [
        {
            "example_id": "a",
            "source": "policy",
            "finished": False,
            "token_ids": [1, 2**40],
            "policy_logp": -1.25,
            "reference_logp": -0.1,
            "log_ratio": -1.15,
            "reward": float("-inf"),
            "judge_score": None,
            "in_round": True,
        },
        {
            "example_id": "a",
            "source": "offline_chosen",
            "finished": True,
            "token_ids": [],
            "policy_logp": 0.0,
            "reference_logp": 0.0,
            "log_ratio": 0.0,
            "reward": 0.5,
            "judge_score": 0.5,
            "in_round": False,
        },
    ]
    store = RunStore(tmp_path)
    folder = store.write_round(2, RECORD, [], {}, iter(answers))
    assert pq.read_table(folder / "candidates.parquet").to_pylist() == answers
    folder = store.write_round(2, RECORD, [], {})
    assert pq.read_table(folder / "candidates.parquet").to_pylist() == []


def test_a_first_start_moves_nothing(tmp_path):
    store = RunStore(tmp_path)
    assert store.start() is None
    assert store.start() is None  # an empty folder is no run
    assert store.root.is_dir()
    assert list(tmp_path.iterdir()) == [store.root]


def test_a_start_moves_earlier_runs_aside_and_loses_nothing(tmp_path):
    store = RunStore(tmp_path)
    runs = []
    for number in range(3):
        moved = store.start()
        if number:
            assert moved == tmp_path / f"sera-earlier-{number}"
            assert tree(moved) == runs[-1]
        assert not any(store.root.iterdir())
        store.write_run({"seed": number})
        store.write_round(2, RECORD, [{"prompt": f"run {number}"}], {"number": number})
        (store.root / "policy-02.safetensors").write_bytes(bytes([number]))
        runs.append(tree(store.root))
    assert [tree(tmp_path / f"sera-earlier-{n}") for n in (1, 2)] == runs[:2]
    assert tree(store.root) == runs[2]
    assert len({json.dumps(sorted(map(str, run.values()))) for run in runs}) == 3


def test_run_settings_read_back(tmp_path):
    store = RunStore(tmp_path)
    store.write_run({"seed": 1})
    store.write_run({"seed": 2, "sera": {"ensemble": 0.3}})
    found = json.loads((store.root / "run.json").read_text())
    assert found.pop("sha256")
    assert found == store.read_run() == {"seed": 2, "sera": {"ensemble": 0.3}}
    assert [path.name for path in store.root.iterdir()] == ["run.json"]


def summary_of(store, number):
    return json.loads((store.round_dir(number) / "summary.json").read_text())


def test_a_summary_is_added_to(tmp_path):
    store = RunStore(tmp_path)
    store.write_round(2, RECORD, [], {"round": 2.0, "kept": 7.0})
    others = {k: v for k, v in tree(store.round_dir(2)).items() if k != "summary.json"}
    store.update_summary(2, {"seconds_training": 1.5})
    store.update_summary(2, {"seconds_training": 2.5, "kept": 8.0})
    assert summary_of(store, 2) == {"round": 2.0, "kept": 8.0, "seconds_training": 2.5}
    found = tree(store.round_dir(2))
    found.pop("summary.json")
    assert found == others


def test_a_round_without_review_gets_a_summary_too(tmp_path):
    store = RunStore(tmp_path)
    store.update_summary(1, {"seconds_training": 1.5})
    assert summary_of(store, 1) == {"round": 1, "seconds_training": 1.5}
    assert [path.name for path in store.round_dir(1).iterdir()] == ["summary.json"]


def test_a_full_or_read_only_disk_is_one_sentence(tmp_path):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield

    store = RunStore(tmp_path)
    store.write_round(2, RECORD, [], {"round": 2})
    with pytest.raises(StoreError, match=r"round-02 can't be written \(No space left on device\);"):
        store.write_round(2, RECORD, full(), {"round": 2})
    kept = store.read_round(2)
    assert kept is not None, "the earlier folder of the round is lost"
    assert kept.rows == RECORD.rows

    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sera").write_text("in the way")
    with pytest.raises(StoreError, match=r"sera/run.json can't be written \("):
        RunStore(blocked).write_run({})


@pytest.fixture
def warnings(monkeypatch):
    """What the module warns of."""
    found = []
    monkeypatch.setattr(
        store_module.LOG, "warning", lambda text, *values: found.append(text % values)
    )
    return found


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def deleted(path):
    path.unlink()


def a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = [truncated, emptied, flipped, deleted, a_folder]
WHAT = r"(is missing|is damaged \(.+\)|can't be read \(.+\))"


def assert_one_sentence(text):
    assert "\n" not in text
    assert text.endswith(".")
    assert not re.search(r"[.?!] +[A-Z]", text), text


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["margins.parquet", "rows.parquet", MANIFEST])
def test_a_damaged_round_is_never_read(tmp_path, warnings, name, damage):
    store = RunStore(tmp_path)
    folder = store.write_round(3, RECORD, [{"prompt": "a"}], {"round": 3})
    damage(folder / name)
    with pytest.raises(StoreError) as caught:
        store.read_round(3)
    text = str(caught.value)
    assert re.fullmatch(
        rf"can't resume: {folder}/{name} {WHAT}; restore it, or resume from a checkpoint of round "
        "2, from which round 3 is made anew.",
        text,
    )
    assert_one_sentence(text)
    assert not warnings


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["candidates.parquet", "bootstrapped.jsonl"])
def test_damage_to_what_the_run_does_not_need_is_told(tmp_path, warnings, name, damage):
    store = RunStore(tmp_path)
    folder = store.write_round(3, RECORD, [{"prompt": "a"}], {"round": 3})
    damage(folder / name)
    assert_equal(store.read_round(3), RECORD)
    assert len(warnings) == 1
    assert re.fullmatch(rf"{folder}/{name} {WHAT}; the run goes on, .*", warnings[0])


def test_every_file_of_a_round_is_in_its_manifest(tmp_path):
    folder = RunStore(tmp_path).write_round(3, RECORD, [], {"round": 3})
    manifest = json.loads((folder / MANIFEST).read_text())
    # The summary is added to when the round ends, and nothing is resumed from it.
    assert {*manifest["files"], "summary.json", MANIFEST} == set(os.listdir(folder))


GAPS = pa.table({"key": ["a/offline"], "quality_chosen_logp": [-1.5]})


def test_what_refinement_adds_is_in_the_manifest_too(tmp_path):
    store = RunStore(tmp_path)
    folder = store.write_round(3, RECORD, [], {"round": 3})
    before = json.loads((folder / MANIFEST).read_text())["files"]
    store.write_refinement(3, GAPS)
    after = json.loads((folder / MANIFEST).read_text())["files"]
    content = (folder / "refinement.parquet").read_bytes()
    assert after == before | {"refinement.parquet": hashlib.sha256(content).hexdigest()}
    assert store.read_refinement(3).equals(GAPS)
    assert_equal(store.read_round(3), RECORD)
    assert {*after, "summary.json", MANIFEST} == set(os.listdir(folder))


def test_a_round_without_review_has_a_manifest_of_what_refinement_adds(tmp_path):
    store = RunStore(tmp_path)
    for table in (GAPS.slice(1), GAPS):  # a round that begins anew writes it again
        store.write_refinement(1, table)
        assert store.read_refinement(1).equals(table)
    store.write_round(2, RECORD, [], {})
    assert store.read_round(1) is None
    assert len(store.read_tables(2)) == 1


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["refinement.parquet", MANIFEST])
@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (1, "start anew without resume_from_checkpoint."),
        (3, "resume from a checkpoint of round 2, from which round 3 is made anew."),
    ],
)
def test_damage_to_what_refinement_needs_is_found(
    tmp_path, warnings, number, way_out, name, damage
):
    store = RunStore(tmp_path)
    if number == 3:
        store.write_round(3, RECORD, [], {"round": 3})
    store.write_refinement(number, GAPS)
    path = store.round_dir(number) / name
    damage(path)
    with pytest.raises(StoreError) as caught:
        store.read_refinement(number)
    text = str(caught.value)
    assert re.fullmatch(rf"can't resume: {path} {WHAT}; restore it, or {way_out}", text)
    assert_one_sentence(text)
    if number == 3 and name != MANIFEST:
        assert_equal(store.read_round(3), RECORD)
    assert not warnings


def test_a_round_in_the_place_of_another_is_refused(tmp_path):
    store = RunStore(tmp_path)
    shutil.copytree(store.write_round(2, RECORD, [], {}), store.round_dir(3))
    with pytest.raises(StoreError, match=r"it belongs to round 2"):
        store.read_round(3)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_settings_are_never_read(tmp_path, damage):
    store = RunStore(tmp_path)
    assert store.read_run() is None
    store.write_run({"seed": 1, "sera": {"ensemble": 0.3}})
    path = store.root / "run.json"
    damage(path)
    if damage is deleted:
        assert store.read_run() is None  # nothing else is there
        store.work.mkdir()
    with pytest.raises(StoreError) as caught:
        store.read_run()
    text = str(caught.value)
    assert re.fullmatch(
        rf"can't resume: {path} {WHAT}; restore it, or start anew without "
        "resume_from_checkpoint.",
        text,
    )
    assert_one_sentence(text)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_summary_is_told_and_left_out(tmp_path, warnings, content):
    store = RunStore(tmp_path)
    store.update_summary(1, {"kept": 5.0})
    folder = store.write_round(2, RECORD, [], {"round": 2.0, "kept": 7.0, "accuracy": math.nan})
    assert store.read_summaries(2) == [
        {"round": 1, "kept": 5.0},
        {"round": 2.0, "kept": 7.0},
    ]
    assert not warnings
    (folder / "summary.json").write_bytes(content)
    assert store.read_summaries(3) == [{"round": 1, "kept": 5.0}, {"round": 2.0}, {"round": 3.0}]
    assert len(warnings) == 1
    store.update_summary(2, {"seconds_training": 1.5})
    assert summary_of(store, 2) == {"round": 2, "seconds_training": 1.5}
    assert_equal(store.read_round(2), RECORD)


class Killed(BaseException):
    pass


class Disk:
    """Notes what reaches the disk in which order, and kills at a given operation."""

    def __init__(self, patch, root, kill_at=None):
        self.root, self.kill_at, self.done = root, kill_at, []
        fsync, replace, rename = os.fsync, Path.replace, Path.rename

        def synced(descriptor):
            self.note("sync", os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        def moved(original):
            def move(path, target):
                self.note("move", path, target)
                return original(path, target)

            return move

        patch.setattr(os, "fsync", synced)
        patch.setattr(Path, "replace", moved(replace))
        patch.setattr(Path, "rename", moved(rename))

    def note(self, what, *paths):
        if len(self.done) == self.kill_at:
            raise Killed
        names = (os.path.relpath(path, self.root) for path in paths)
        self.done.append((what, *(re.sub(r"\.[0-9a-f]{16}\.tmp", ".tmp", name) for name in names)))


FILES = ["margins.parquet", "rows.parquet", "candidates.parquet", "bootstrapped.jsonl"]


def test_every_artifact_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    with monkeypatch.context() as patch:
        disk = Disk(patch, tmp_path)
        store.start()
        assert disk.done == [("sync", ".")]
        disk.done.clear()
        store.write_run({"seed": 1})
        assert disk.done == [
            ("sync", "sera/.run.json.tmp"),
            ("move", "sera/.run.json.tmp", "sera/run.json"),
            ("sync", "sera"),
        ]
        disk.done.clear()
        store.write_round(2, RECORD, [], {})
        building = "sera/.round-02.tmp"
        assert disk.done == [
            *(("sync", f"{building}/{name}") for name in (*FILES, "summary.json", MANIFEST)),
            ("sync", building),
            ("move", building, "sera/round-02"),
            ("sync", "sera"),
        ]
        disk.done.clear()
        store.update_summary(2, {"kept": 1.0})
        folder = "sera/round-02"
        assert disk.done == [
            ("sync", f"{folder}/.summary.json.tmp"),
            ("move", f"{folder}/.summary.json.tmp", f"{folder}/summary.json"),
            ("sync", folder),
        ]


def test_a_kill_at_any_moment_leaves_the_old_round_or_the_new_one(tmp_path, monkeypatch):
    newer = RoundRecord(table_of(5, seed=1), ROWS[:1])
    found = []
    for moment in range(20):
        store = RunStore(tmp_path / str(moment))
        store.write_round(2, RECORD, [], {"old": 1.0})
        with monkeypatch.context() as patch:
            disk = Disk(patch, tmp_path, kill_at=moment)
            with contextlib.suppress(Killed):
                store.write_round(2, newer, [], {"new": 1.0})
        visible = [path.name for path in store.root.glob("[!.]*")]
        assert visible in ([], ["round-02"])
        record = RunStore(tmp_path / str(moment)).read_round(2)
        found.append(len(record.table.ids))
        assert_equal(record, RECORD if found[-1] == 3 else newer)
        assert ("old" in summary_of(store, 2)) == (found[-1] == 3)
        store.write_round(2, newer, [], {})
        assert [path.name for path in store.root.iterdir()] == ["round-02"]
        if len(disk.done) < moment:
            break
    assert found == sorted(found)
    assert set(found) == {3, 5}
    assert len(found) < 20
