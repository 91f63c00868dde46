"""The ``sera:`` block: defaults, bounds, and errors of one sentence."""

import datetime
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sera_plugin.config import (
    BootstrapConfig,
    GuardConfig,
    RefineConfig,
    SelectionConfig,
    SeraArgs,
    SeraConfig,
    TrainingConfig,
    parse_block,
)
from sera_plugin.runtime.errors import SeraConfigError

MODELS = (SeraConfig, SelectionConfig, BootstrapConfig, GuardConfig, RefineConfig)
KEYS = sorted({name for model in MODELS for name in model.model_fields})


def error_of(raw):
    with pytest.raises(SeraConfigError) as caught:
        parse_block(raw)
    text = str(caught.value)
    assert_one_sentence(text)
    return text


def assert_one_sentence(text):
    assert text.isprintable(), ascii(text)
    assert text[-1] in ".?", text
    assert text.startswith("sera"), text
    assert len(text) < 1000  # long values are cut


def test_no_block_means_off_and_true_means_the_contrast():
    assert parse_block(None) is None
    assert parse_block(False) is None
    assert parse_block({}) == SeraConfig()
    assert parse_block(True) == parse_block({"preset": "contrast"}) != SeraConfig()


def test_defaults():
    assert SeraConfig().model_dump() == {
        "preset": "default",
        "warmup_rounds": 1,
        "ensemble": 0.3,
        "selection": {
            "rule": "top",
            "keep": 0.7,
            "margin": "sum",
            "band": [20.0, 90.0],
            "fill": "next_best",
            "threshold": 0.0,
            "uncertainty": 0.0,
            "on_negative": "keep",
            "negative_reviews": 2,
            "negative_deviations": 1.0,
            "source": "rescore",
            "external": {
                "chosen": "score_chosen",
                "rejected": "score_rejected",
                "margin": "",
                "mode": "fused",
                "implicit_scale": "auto",
                "external_scale": "auto",
            },
        },
        "bootstrap": {
            "fraction": 0.3,
            "num_candidates": 4,
            "prompts": 0.6,
            "pool": "policy_and_offline",
            "sampler": "policy",
            "temperature": 0.7,
            "top_p": 1.0,
            "max_new_tokens": 512,
            "length_penalty": 0.0,
            "ensemble": False,
            "engine": "transformers",
            "vllm_mode": "server",
            "gather": "auto",
            "judge": "implicit",
            "judge_mode": "replace",
            "rejected": "worst",
            "guard": {
                "enabled": True,
                "max_drift": 0.5,
                "max_spread": 6.0,
                "max_length_correlation": 0.3,
                "min_agreement": 0.6,
                "min_accuracy": 0.5,
                "min_prompts": 16,
                "held_out": "auto",
            },
        },
        "refine": None,
        "loss": [],
        "training": dict.fromkeys(TrainingConfig.model_fields, "auto") | {"merged": False},
        "max_set_aside": 0.01,
        "reference": "fixed",
        "reference_device": "auto",
    }


def test_defaults_of_a_refine_block():
    assert parse_block({"refine": {}}).refine.model_dump() == {
        "weight": 0.1,
        "prompt": None,
        "placement": "user_prefix",
        "baseline": "reference",
        "normalize": "none",
        "clip": None,
        "source": "on_the_fly",
    }


def test_false_in_the_place_of_a_block():
    config = parse_block({"selection": False, "bootstrap": False, "refine": False})
    assert config == SeraConfig(
        selection=SelectionConfig(keep=1.0), bootstrap=BootstrapConfig(fraction=0.0), refine=None
    )


def test_true_in_the_place_of_a_block_is_its_defaults():
    raw = {"selection": True, "bootstrap": True, "refine": True}
    assert parse_block(raw) == parse_block({"refine": {}})
    assert parse_block({"preset": "paper", "bootstrap": True}) == parse_block({"preset": "paper"})
    assert parse_block({"preset": "select", "bootstrap": True}).bootstrap == BootstrapConfig()


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize(("fraction", "prompts"), [(0.3, 0.6), (0.6, 0.6), (0.8, 1.0), (1, 1.0)])
def test_a_fraction_alone_has_prompts_enough(preset, fraction, prompts):
    found = parse_block({"preset": preset, "bootstrap": {"fraction": fraction}}).bootstrap
    assert (found.fraction, found.prompts) == (fraction, prompts)
    assert parse_block({"bootstrap": {"fraction": 0.8, "prompts": 0.9}}).bootstrap.prompts == 0.9


@pytest.mark.parametrize(
    ("raw", "reviews"),
    [
        ({}, True),
        ({"selection": False}, True),
        ({"bootstrap": False}, True),
        ({"selection": False, "bootstrap": False}, False),
        ({"selection": {"keep": 1}, "bootstrap": {"fraction": 0}}, False),
        ({"selection": {"keep": 2}, "bootstrap": False}, True),
        ({"selection": False, "bootstrap": False, "reference": "previous"}, True),
    ],
)
def test_rounds_are_reviewed_only_where_a_review_changes_something(raw, reviews):
    assert parse_block(raw).reviews is reviews


@pytest.mark.parametrize(
    ("refine", "on"), [({}, True), ({"weight": 0}, False), (None, False), (False, False)]
)
def test_a_weight_above_zero_switches_refinement_on(refine, on):
    assert (parse_block({"refine": refine}).refinement is not None) is on


def test_null_means_default_at_every_level():
    raw = {"ensemble": None, "selection": None, "bootstrap": {"top_p": None, "fraction": 0.1}}
    assert parse_block(raw) == SeraConfig(bootstrap=BootstrapConfig(fraction=0.1))


@pytest.mark.parametrize(
    ("raw", "changes"),
    [
        ({"preset": "default"}, {}),
        ({"preset": None}, {}),
        ({"preset": "select"}, {"preset": "select", "bootstrap": {"fraction": 0.0}}),
        (
            {"preset": "paper"},
            {"preset": "paper", "bootstrap": {"ensemble": True, "guard": {"enabled": False}}},
        ),
        # What is written out wins, at every level.
        (
            {"preset": "paper", "ensemble": 0.5, "bootstrap": {"ensemble": False, "guard": True}},
            {"preset": "paper", "ensemble": 0.5},
        ),
        (
            {"preset": "paper", "bootstrap": {"guard": {"max_drift": 1}}},
            {"preset": "paper", "bootstrap": {"ensemble": True, "guard": {"max_drift": 1.0}}},
        ),
        (
            {"preset": "select", "selection": {"keep": 0.5}, "bootstrap": {"fraction": 0.1}},
            {"preset": "select", "selection": {"keep": 0.5}, "bootstrap": {"fraction": 0.1}},
        ),
        ({"bootstrap": {"guard": False}}, {"bootstrap": {"guard": {"enabled": False}}}),
        ({"bootstrap": {"guard": True}}, {}),
        ({"bootstrap": {"guard": {"max_spread": None}}}, {}),
    ],
)
def test_presets_and_switches(raw, changes):
    def over(base, more):
        return {
            **base,
            **{k: over(base[k], v) if isinstance(v, dict) else v for k, v in more.items()},
        }

    assert parse_block(raw).model_dump() == over(SeraConfig().model_dump(), changes)


def test_a_preset_holds_where_the_block_is_not_raw():
    assert SeraConfig(preset="select").bootstrap.fraction == 0
    assert SeraArgs(sera={"preset": "select"}).sera.bootstrap.fraction == 0
    again = parse_block({"preset": "paper"})
    assert parse_block(again.model_dump()) == again


def test_the_schema_allows_a_switch_in_the_place_of_a_block():
    schema = SeraConfig.model_json_schema()
    blocks = schema["properties"] | schema["$defs"]["BootstrapConfig"]["properties"]
    for name in ("selection", "bootstrap", "refine", "guard"):
        assert {"type": "boolean"} in blocks[name]["anyOf"]
        model = f"{name.capitalize()}Config"
        assert {"$ref": f"#/$defs/{model}"} in blocks[name]["anyOf"]


def test_a_parsed_block_parses_again_to_the_same():
    config = parse_block({"selection": {"keep": 5000}, "bootstrap": {"length_penalty": "auto"}})
    assert parse_block(config.model_dump()) == config


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [
        ("bootstrap", "temperature", 1),
        ("bootstrap", "top_p", 1),
        ("bootstrap", "length_penalty", 0),
        ("bootstrap", "fraction", 0),
    ],
)
def test_whole_numbers_become_floats_where_floats_are_meant(block, key, value):
    # transformers refuses a temperature that is an int.
    found = getattr(getattr(parse_block({block: {key: value}}), block), key)
    assert found == value
    assert type(found) is float


def test_the_config_is_frozen():
    with pytest.raises(ValidationError):
        SeraConfig().ensemble = 0.5


@pytest.mark.parametrize("model", [*MODELS, SeraArgs])
def test_every_field_has_a_description(model):
    for name, field in model.model_fields.items():
        assert field.description, f"{model.__name__}.{name}"
        assert field.description.endswith("."), f"{model.__name__}.{name}"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("yes", "sera: 'yes' is not allowed; write a block of keys, true or false."),
        ([1], "sera: [1] is not allowed; write a block of keys, true or false."),
        (3, "sera: 3 is not allowed; write a block of keys, true or false."),
        (
            {"ensemble": 2},
            "sera.ensemble: 2 is not allowed; it must be a number from 0 up to 1.",
        ),
        (
            {"ensemble": True},
            "sera.ensemble: true is not allowed; it must be a number from 0 up to 1.",
        ),
        (
            {"warmup_rounds": 0},
            "sera.warmup_rounds: 0 is not allowed where pairs are judged by the policy's margin, "
            "which says nothing before the policy has been trained; write 1 or more, or judge by "
            "contrast, external or a signal of your own alone (sera.selection.by).",
        ),
        (
            {"warmup_rounds": -1},
            "sera.warmup_rounds: -1 is not allowed; it must be a whole number from 0 up to "
            "2147483647.",
        ),
        (
            {"reference": "previos"},
            "sera.reference: 'previos' is not allowed; it must be fixed or previous.",
        ),
        (
            {"bootstrap": {"max_new_tokens": 10**5000}},
            "sera.bootstrap.max_new_tokens: a huge int is not allowed; it must be a whole number "
            "from 1 up to 2147483647.",
        ),
        (
            {"selection": 3},
            "sera.selection: 3 is not allowed; it must be a block of keys or true or false.",
        ),
        (
            {"selection": {"external": True}},
            "sera.selection.external: true is not allowed; it must be a block of keys.",
        ),
        (
            {"bootstrap": [True, None, {"guard": False}]},
            "sera.bootstrap: [true, null, {'guard': false}] is not allowed; it must be a block of "
            "keys or true or false.",
        ),
        (
            {"selection": {"keep": 3_000_000_000}},
            "sera.selection.keep: 3000000000 is not allowed; it must be a share in (0, 1], a whole "
            "number of pairs from 2 up to 2147483647, auto, or a list of up to 1000 shares and "
            "numbers.",
        ),
        (
            {"selection": {"negative_reviews": 3_000_000_000}},
            "sera.selection.negative_reviews: 3000000000 is not allowed; it must be a whole number "
            "from 1 up to 2147483647.",
        ),
        (
            {"selection": {"threshold": math.inf}},
            "sera.selection.threshold: inf is not allowed; it must be a number, and finite.",
        ),
        (
            {"selection": {"external": {"chosen": "c" * 201}}},
            f"sera.selection.external.chosen: '{'c' * 76}... is not allowed; it must be the name "
            "of a column, of at most 200 characters.",
        ),
        (
            {"selection": {"signals": ["l" * 75] * 101}},
            f"sera.selection.signals: ['{'l' * 75}... is not allowed; it must be a list of margin, "
            "length, contrast, external, or package.module:function, of at most 100 entries.",
        ),
        (
            {"training": {"packing": "yes"}},
            "sera.training.packing: 'yes' is not allowed; it must be auto or true or false.",
        ),
        (
            {"training": {"packing": False, "shared_prompts": True}},
            "sera.training.shared_prompts: true needs packed steps, which sera.training.packing: "
            "false switches off; change one of them.",
        ),
        (
            {"training": {"packing": False, "merged": True}},
            "sera.training.merged: true needs packed steps, which sera.training.packing: false "
            "switches off; change one of them.",
        ),
        (
            {"refine": {"weight": -0.1}},
            "sera.refine.weight: -0.1 is not allowed; it must be a number from 0.",
        ),
        (
            {"refine": {"clip": 0}},
            "sera.refine.clip: 0 is not allowed; it must be a number above 0, or null.",
        ),
        (
            {"refine": {"prompt": 3}},
            "sera.refine.prompt: 3 is not allowed; it must be text, the path of a text file, or "
            "null.",
        ),
        (
            {"selection": {"keep": 0}},
            "sera.selection.keep: 0 is not allowed; it must be a share in (0, 1], a whole number "
            "of pairs from 2 up to 2147483647, auto, or a list of up to 1000 shares and numbers.",
        ),
        (
            {"selection": {"keep": 2.5}},
            "sera.selection.keep: 2.5 is neither a share in (0, 1] nor a whole number of pairs.",
        ),
        (
            {"selection": {"keep": [0.5, 2.5]}},
            "sera.selection.keep: 2.5 is neither a share in (0, 1] nor a whole number of pairs.",
        ),
        (
            {"selection": {"rule": "best"}},
            "sera.selection.rule: 'best' is unknown. Available: top, band, bottom, random, "
            "threshold, lossdiff_irm, external, or package.module:function.",
        ),
        (
            {"selection": {"rule": "treshold"}},
            "sera.selection.rule: 'treshold' is unknown; did you mean threshold? Available: top, "
            "band, bottom, random, threshold, lossdiff_irm, external, or package.module:function.",
        ),
        (
            {"selection": {"rule": 3}},
            "sera.selection.rule: 3 is not allowed; it must be top, band, bottom, random, "
            "threshold, lossdiff_irm, external, or package.module:function.",
        ),
        (
            {"selection": {"signals": ["margin", "lenght"]}},
            "sera.selection.signals: 'lenght' is unknown; did you mean length? Available: margin, "
            "length, contrast, external, or package.module:function.",
        ),
        (
            {"selection": {"signals": "margin"}},
            "sera.selection.signals: 'margin' is not allowed; it must be a list of margin, length, "
            "contrast, external, or package.module:function.",
        ),
        (
            {"selection": {"signals": ["margin", "own.signals:margin"]}},
            "sera.selection.signals: margin is there twice; every signal needs a name of its own.",
        ),
        (
            {"bootstrap": {"engine": "vlm"}},
            "sera.bootstrap.engine: 'vlm' is unknown; did you mean vllm? Available: transformers, "
            "transformers_paged, vllm, or package.module:Class.",
        ),
        (
            {"bootstrap": {"judge": ""}},
            "sera.bootstrap.judge: '' is not allowed; it must be implicit, contrast, "
            "package.module:function, or the path of a reward model.",
        ),
        (
            {"bootstrap": {"rejected": "best"}},
            "sera.bootstrap.rejected: 'best' is not allowed; it must be worst or worst_of or "
            "reference.",
        ),
        (
            {"bootstrap": {"rejected": "reference", "sampler": "policy"}},
            "sera.bootstrap.sampler: policy can't be used with sera.bootstrap.rejected: reference, "
            "for which the reference must write answers; it must be mixed or reference.",
        ),
        (
            {"bootstrap": {"rejected": "reference", "num_candidates": 1}},
            "sera.bootstrap.num_candidates: 1 is not enough for sera.bootstrap.sampler: mixed; it "
            "must be 2 or more, one for each writer.",
        ),
        (
            {"selection": {"rule": "band", "band": [80, 20]}},
            "sera.selection.band: [80.0, 20.0] holds no pair; the first percentile must be below "
            "the second.",
        ),
        (
            {"selection": {"rule": "band", "keep": 0.5}},
            "sera.selection.keep: 0.5 has no effect beside sera.selection.rule: band, whose "
            "percentiles say how many pairs are kept; remove the key.",
        ),
        (
            {"bootstrap": {"length_penalty": "automatic"}},
            "sera.bootstrap.length_penalty: 'automatic' is not allowed; it must be a number or "
            "auto.",
        ),
        (
            {"bootstrap": {"temperature": math.nan}},
            "sera.bootstrap.temperature: nan is not allowed; it must be a number from 0 up to 100, "
            "and finite.",
        ),
        (
            {"bootstrap": {"top_p": 0}},
            "sera.bootstrap.top_p: 0 is not allowed; it must be a number above 0 up to 1.",
        ),
        (
            {"bootstrap": {"ensemble": "yes please"}},
            "sera.bootstrap.ensemble: 'yes please' is not allowed; it must be true or false.",
        ),
        (
            {"preset": "papers"},
            "sera.preset: 'papers' is not allowed; it must be default or paper or select or "
            "contrast.",
        ),
        (
            {"preset": ["paper"]},
            "sera.preset: ['paper'] is not allowed; it must be default or paper or select or "
            "contrast.",
        ),
        (
            {"bootstrap": {"guard": "on"}},
            "sera.bootstrap.guard: 'on' is not allowed; it must be a block of keys or true or "
            "false.",
        ),
        (
            {"bootstrap": {"guard": {"max_drift": 0}}},
            "sera.bootstrap.guard.max_drift: 0 is not allowed; it must be a number above 0 up to "
            "2147483647.",
        ),
        (
            {"bootstrap": {"guard": {"enabled": 1}}},
            "sera.bootstrap.guard.enabled: 1 is not allowed; it must be true or false.",
        ),
        (
            {"bootstrap": {"sampler": "mixed", "num_candidates": 1}},
            "sera.bootstrap.num_candidates: 1 is not enough for sera.bootstrap.sampler: mixed; it "
            "must be 2 or more, one for each writer.",
        ),
        (
            {"bootstrap": {"fraction": 0.9, "prompts": 0.6}},
            "sera.bootstrap.prompts: 0.6 is below sera.bootstrap.fraction: 0.9; a prompt gives at "
            "most one pair, so it must be at least as large.",
        ),
        (
            {"reference": "previous", "bootstrap": {"ensemble": True}},
            "sera.bootstrap.ensemble: true can't be combined with sera.reference: previous, "
            "because the earlier policy's own reference is no longer at hand; set one of them to "
            "its default (false, fixed).",
        ),
        (
            {"reference": "previous", "selection": {"source": "training"}},
            "sera.selection.source: training can't be combined with sera.reference: previous, "
            "whose log-probs must be those of one policy, not of every step of a round; set one "
            "of them to its default (rescore, fixed).",
        ),
        ({7: 1}, "sera: 7 is not a key of SeRA; keys are words."),
        (
            {"bootstrap": {"a\nb": 1}},
            r"sera.bootstrap: 'a\nb' is not a key of SeRA; keys are words.",
        ),
    ],
)  # fmt: skip
def test_errors_word_for_word(raw, expected):
    assert error_of(raw) == expected


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        ({"ensembel": 0.3}, "sera.ensembel: 0.3 is not a key of SeRA; did you mean ensemble?"),
        ({"bootstrap": {"topp": 1}}, "did you mean top_p?"),
        ({"bootstrap": {"guard": {"max_drif": 1}}}, "did you mean max_drift?"),
        ({"max_drift": 1}, "did you mean sera.bootstrap.guard.max_drift?"),
        ({"bootstrap": {"num_candidate": 1}}, "did you mean num_candidates?"),
        ({"selection": {"margins": 1}}, "did you mean margin?"),
        # A key of another block is named with its path.
        ({"keep": 0.5}, "did you mean sera.selection.keep?"),
        ({"temperature": 0.5}, "did you mean sera.bootstrap.temperature?"),
        ({"selection": {"fraction": 0.5}}, "did you mean sera.bootstrap.fraction?"),
        ({"bootstrap": {"warmup_rounds": 1}}, "did you mean sera.warmup_rounds?"),
        ({"selection": {"zzz": 1}}, "source, external, contrast."),
    ],
)
def test_unknown_keys_get_a_hint(raw, hint):
    assert error_of(raw).endswith(hint)


@pytest.mark.parametrize("name", sorted(SeraConfig.model_fields))
def test_one_letter_off_is_understood(name):
    assert error_of({name[:-1] + "x": 1}).endswith(f"did you mean {name}?")


def deep(levels, make):
    value = 1
    for _ in range(levels):
        value = make(value)
    return value


@pytest.mark.parametrize("place", ["sera", "sera.ensemble", "sera.selection.keep", "sera.nonsense"])
@pytest.mark.parametrize(
    "value",
    [
        10**400,
        -(10**400),
        10**5000,  # Python refuses to print this many digits
        2**63,
        "\ud800",
        "\x1b[31m\n",
        "x" * 1_000_000,
        b"\xff",
        math.inf,
        datetime.date(2024, 1, 1),
        {1, 2},
        object,
        deep(3000, lambda v: [v]),
        deep(3000, lambda v: {"selection": v}),
        deep(3000, lambda v: {"\n": v}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_hostile_values_give_one_sentence(place, value):
    raw = value
    for part in reversed(place.split(".")[1:]):
        raw = {part: raw}
    error_of(raw)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(st.characters(), max_size=8),
    st.sampled_from(["sum", "mean", "auto", "policy", "fixed", "previous"]),
)
words = st.one_of(st.sampled_from(KEYS), st.text(st.characters(), max_size=8), st.integers())
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=8,
)
# Blocks with known keys alone get as far as the validators.
blocks = st.fixed_dictionaries(
    {},
    optional={
        name: st.fixed_dictionaries({}, optional=dict.fromkeys(inner.model_fields, scalars))
        if inner
        else scalars
        for name, inner in {
            **dict.fromkeys(SeraConfig.model_fields),
            "selection": SelectionConfig,
            "bootstrap": BootstrapConfig,
            "refine": RefineConfig,
        }.items()
    },
)


@settings(max_examples=400, deadline=None)
@given(values | blocks | st.dictionaries(words, values, max_size=4))
@example({"bootstrap": {"prompts": 0.1}})
def test_parse_block_returns_a_config_or_raises_one_sentence(raw):
    try:
        config = parse_block(raw)
    except SeraConfigError as error:
        assert_one_sentence(str(error))
    else:
        assert config is None or isinstance(config, SeraConfig)
        if config is not None:
            assert all(0 < keep < math.inf for keep in config.selection.planned)
            assert config.bootstrap.fraction <= config.bootstrap.prompts <= 1
