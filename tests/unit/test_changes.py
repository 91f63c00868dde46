"""What a resumed run says about what has changed."""

import json

import pytest

from sera_plugin.config import SeraConfig
from sera_plugin.training.changes import compare
from sera_plugin.training.checkpoints import is_finished, set_unfinished_aside

RUN = {
    "dataset_hash": "aa",
    "pairs": 10,
    "base_model": "one",
    "sequence_len": 128,
    "seed": 1,
    "beta": 0.1,
    "loss_type": ["sigmoid"],
    "updates": [8, 6],
    "ranks": 1,
    "distributed": "NO",
    "sera": {"ensemble": 0.3, "selection": {"keep": 0.7, "margin": "sum"}},
}


def test_nothing_changed():
    changes = compare(RUN, json.loads(json.dumps(RUN)))
    assert changes.unsafe == changes.safe == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset_hash", "bb"),
        ("pairs", 11),
        ("base_model", "two"),
        ("sequence_len", 256),
        ("seed", 2),
        ("beta", 0.2),
        ("loss_type", ["ipo"]),
        ("updates", [8, 7]),
    ],
)
def test_an_unsafe_change_is_one_sentence_with_both_values(key, value):
    changes = compare(RUN, RUN | {key: value})
    (sentence,) = changes.unsafe
    assert changes.safe == ()
    assert f"was {RUN[key]} and is {value};" in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_a_changed_key_of_the_block_is_named_by_its_path():
    sera = {"ensemble": 0.3, "selection": {"keep": 0.5, "margin": "sum"}, "new": True}
    changes = compare(RUN, RUN | {"sera": sera})
    assert [s.split(";")[0] for s in changes.unsafe] == [
        "resume: sera.selection.keep was 0.7 and is 0.5",
        "resume: sera.new was None and is True",
    ]


def test_a_key_that_the_version_before_did_not_know_stands_for_its_default():
    block = SeraConfig.model_validate(
        {"refine": {"weight": 0.1}, "selection": {"signals": ["length"]}}
    ).model_dump()
    assert "signals" not in SeraConfig().model_dump()["selection"]
    before = json.loads(json.dumps(block))
    for inner, key in (("selection", "signals"), ("refine", "placement"), ("bootstrap", "guard")):
        del before[inner][key]
    changes = compare(RUN | {"sera": before}, RUN | {"sera": block})
    assert [s.split(";")[0] for s in changes.unsafe] == [
        "resume: sera.selection.signals was [] and is ['length']"
    ]
    changes = compare(RUN | {"sera": block}, RUN | {"sera": before})
    assert [s.split(";")[0] for s in changes.unsafe] == [
        "resume: sera.selection.signals was ['length'] and is []"
    ]


def test_another_number_of_processes_goes_on_and_says_so():
    changes = compare(RUN, RUN | {"ranks": 2, "distributed": "MULTI_GPU"})
    assert changes.unsafe == ()
    assert changes.safe[0] == (
        "resume: the number of processes was 1 and is 2; the run goes on, its numbers may differ "
        "by rounding."
    )
    assert len(changes.safe) == 2


@pytest.mark.parametrize("content", [None, "", '{"global_st', "[]", "{}"])
def test_unfinished_checkpoints_are_set_aside_and_nothing_is_lost(tmp_path, content):
    for step, text in ((2, '{"global_step": 2}'), (4, content)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_text(str(step))
        if text is not None:
            (folder / "trainer_state.json").write_text(text)
    assert is_finished(tmp_path / "checkpoint-2")
    (tmp_path / "unfinished-checkpoint-4").mkdir()
    (tmp_path / "checkpoint-final").mkdir()
    assert set_unfinished_aside(tmp_path) == [tmp_path / "unfinished-checkpoint-4-2"]
    assert (tmp_path / "unfinished-checkpoint-4-2/weights").read_text() == "4"
    assert not (tmp_path / "checkpoint-4").exists()
    assert (tmp_path / "checkpoint-2/weights").read_text() == "2"
    assert (tmp_path / "checkpoint-final").exists()
