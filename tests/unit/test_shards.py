"""Shards on disk, and passes that are stopped and started again."""

import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from sera_plugin.data.store import RunStore
from sera_plugin.runtime.errors import StoreError
from sera_plugin.runtime.shards import LOG, REFERENCE, Origin, Shards, round_label
from sera_plugin.sampling.sampler import CompletionCodec

VOCABULARY = 40
TABLE = pa.table({"batch": [0, 0, 3], "logp": [-0.1, float("nan"), -float("inf")]})


@pytest.fixture
def warnings(monkeypatch):
    """What the module warns of."""
    found = []
    monkeypatch.setattr(LOG, "warning", lambda text, *values: found.append(text % values))
    return found


def shards(tmp_path, **changes):
    origin = Origin(tmp_path / "work", round_label(2), "model")
    return Shards.of(origin, {"seed": 1, "stops": frozenset({3, 1}), **changes})


def same(found, expected):
    assert [table.schema.names for table in found] == [table.schema.names for table in expected]
    for here, there in zip(found, expected, strict=True):
        for name in here.schema.names:
            assert here[name].to_numpy().tobytes() == there[name].to_numpy().tobytes()


def test_shards_read_back_equal_and_in_order(tmp_path):
    some = shards(tmp_path)
    assert some.read() == []
    paths = [some.write(table) for table in (TABLE, TABLE.slice(1), TABLE.slice(0, 0))]
    assert [path.name[:12] for path in paths] == ["shard-00001.", "shard-00002.", "shard-00003."]
    same(shards(tmp_path).read(), [TABLE, TABLE.slice(1), TABLE.slice(0, 0)])


def test_the_key_holds_all_that_determines_the_pass(tmp_path):
    origin = Origin(tmp_path, round_label(2), "model")
    keys = {
        Shards.of(one, parts).key
        for one in (origin, replace(origin, label="round-03"), replace(origin, model="other"))
        for parts in ({"seed": 1}, {"seed": 2}, {"seed": 1, "stops": frozenset({1})})
    }
    assert len(keys) == 9
    assert shards(tmp_path, stops=frozenset({1, 3})).key == shards(tmp_path).key


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped"])
def test_a_damaged_shard_is_never_used(tmp_path, warnings, damage):
    some = shards(tmp_path)
    first, second = some.write(TABLE), some.write(TABLE.slice(2))
    content = first.read_bytes()
    if damage == "flipped":
        for bit in range(0, 8 * len(content), 997):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            first.write_bytes(flipped)
            same(some.read(), [TABLE.slice(2)])
    else:
        first.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
        same(some.read(), [TABLE.slice(2)])
    assert all(str(first) in text and "computed again" in text for text in warnings)
    assert warnings
    assert second.exists()
    # What is damaged warns once.
    count = len(warnings)
    some.read()
    assert len(warnings) == count


def test_an_unreadable_shard_is_never_used(tmp_path, warnings):
    some = shards(tmp_path)
    path = some.write(TABLE)
    path.unlink()
    path.mkdir()
    assert some.read() == []
    assert str(path) in warnings[0]


def test_a_shard_of_another_pass_is_never_used(tmp_path, warnings):
    one, other = shards(tmp_path), shards(tmp_path, seed=2)
    path = one.write(TABLE)
    assert other.read() == []
    assert not warnings
    moved = other.folder / path.name
    moved.parent.mkdir()
    path.rename(moved)
    assert other.read() == []
    assert "another pass" in warnings[0]


def test_a_half_written_file_is_not_seen(tmp_path, monkeypatch, warnings):
    some = shards(tmp_path)
    some.write(TABLE)

    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            some.write(TABLE.slice(1))
    assert len(list(some.folder.iterdir())) == 1
    (some.folder / ".shard-00002.parquet.0123456789abcdef.tmp").write_bytes(b"PAR1")
    same(some.read(), [TABLE])
    some.write(TABLE.slice(2))
    same(some.read(), [TABLE, TABLE.slice(2)])
    assert not warnings


def test_a_folder_that_cant_be_written(tmp_path):
    (tmp_path / "work").write_text("in the way")
    with pytest.raises(
        StoreError, match=r"^.*can't write .*/work/round-02-.*resume the run"
    ) as caught:
        shards(tmp_path).write(TABLE)
    assert isinstance(caught.value.__cause__, OSError)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_a_read_only_folder(tmp_path):
    some = shards(tmp_path)
    some.folder.mkdir(parents=True)
    some.folder.chmod(0o500)
    with pytest.raises(StoreError, match=r"can't write .*Permission denied"):
        some.write(TABLE)


def test_a_full_disk(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    some = shards(tmp_path)
    some.write(TABLE)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"can't write .*shard-00002.*No space left"):
        some.write(TABLE.slice(1))
    same(some.read(), [TABLE])


def test_work_of_finished_rounds_is_dropped_and_the_rest_kept(tmp_path):
    store = RunStore(tmp_path)
    labels = [REFERENCE, *map(round_label, (2, 3, 4))]
    for label in labels:
        Shards.of(Origin(store.work, label, "m"), {}).write(TABLE)
    store.drop_work(3)
    left = {path.name.rsplit("-", 1)[0] for path in store.work.iterdir()}
    assert left == {REFERENCE, "round-04"}
    moved = store.start()
    assert not store.work.exists()
    assert len(list((moved / "work").iterdir())) == 2


def test_rollouts_read_back_equal(tmp_path):
    def answers(*tokens):
        return [(np.array(ids, dtype=np.int32), finished, None) for ids, finished in tokens]

    found = {
        5: [("b", answers(((), False), ((1, 2), True))), ("a", answers(*[((7,), False)] * 2))],
        7: [("c", answers(((2**31 - 1,), True)))],
    }
    some = shards(tmp_path)
    some.write(CompletionCodec().encode(found))
    read = CompletionCodec().decode(some.read()[0])

    def plain(batches):
        return {
            number: [(name, [(ids.tolist(), *rest) for ids, *rest in rows]) for name, rows in batch]
            for number, batch in batches.items()
        }

    assert plain(read) == plain(found)
    assert {ids.dtype for batch in read.values() for _, rows in batch for ids, *_ in rows} == {
        np.dtype(np.int32)
    }
