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
        "resume: sera.new was null and is true",
    ]


def test_of_long_values_a_sentence_shows_what_differs():
    updates = [1910] * 60
    run = RUN | {"updates": updates, "quality_prompt": "Be kind. " * 50 + "Be short."}
    changed = [*updates[:30], 1900, *updates[31:]]
    prompt = "Be kind. " * 50 + "Be long."
    sentences = [
        compare(run, run | change).unsafe[0].partition(";")[0]
        for change in (
            {"updates": changed},
            {"updates": updates[:30]},
            {"updates": None},
            {"quality_prompt": prompt},
        )
    ]
    each = "resume: the updates of each round (num_epochs, max_steps or batch size)"
    shown = "1910, " * 20
    assert sentences == [
        f"{each} was 1910 and is 1900 in entry 31, the first that differs",
        f"{each} had 60 entries and has 30, of which the first 30 are alike",
        f"{each} was [{shown[:116]}... and is null",
        "resume: the text of sera.refine.prompt was 'short.' and is 'long.' from character 454 on",
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
