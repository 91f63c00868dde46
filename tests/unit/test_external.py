"""Scores that the dataset carries."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from sera_plugin.config import ExternalConfig, SelectionConfig
from sera_plugin.data.margins import external_margins, margins_for, missing_columns

NAN = float("nan")
DATA = Dataset.from_dict(
    {
        "score_chosen": [3.0, 1.0, None, float("inf")],
        "score_rejected": [1.5, 2.0, 1.0, 0.0],
        "gap": ["0.25", "-2", "a lot", ""],
        "sure": [True, False, True, None],
    }
)


def settings_of(**keys: str) -> ExternalConfig:
    return ExternalConfig.model_validate(keys)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [1.5, -1.0, NAN, NAN]),
        ({"chosen": "score_rejected", "rejected": "score_chosen"}, [-1.5, 1.0, NAN, NAN]),
        ({"margin": "gap"}, [0.25, -2.0, NAN, NAN]),
        ({"margin": "sure"}, [NAN] * 4),
    ],
)
def test_margins_by_hand(keys: dict[str, str], expected: list[float]) -> None:
    np.testing.assert_array_equal(external_margins(DATA, settings_of(**keys)), expected)


@pytest.mark.parametrize(
    ("keys", "missing"),
    [
        ({}, []),
        ({"margin": "gap", "chosen": "nowhere"}, []),
        ({"chosen": "nowhere"}, [("chosen", "nowhere")]),
        ({"margin": "none"}, [("margin", "none")]),
    ],
)
def test_columns_that_are_not_there(keys: dict[str, str], missing: list[tuple[str, str]]) -> None:
    assert missing_columns(settings_of(**keys), DATA.column_names) == missing


def test_only_the_rule_that_needs_scores_reads_them() -> None:
    assert margins_for(DATA, SelectionConfig()) is None
    found = margins_for(DATA, SelectionConfig(rule="external"))
    np.testing.assert_array_equal(found, [1.5, -1.0, NAN, NAN])
