"""The README's tables agree with the code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sera_plugin.config import SeraArgs, SeraConfig
from sera_plugin.config.parsing import allowed_at, block_of
from sera_plugin.config.parts import RULES
from sera_plugin.data import tables
from sera_plugin.host.checks import _UNSUPPORTED
from sera_plugin.review import metrics
from sera_plugin.review.guard import Signals
from sera_plugin.review.pairing import Shortfall
from sera_plugin.training import refinement

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def keys(
    model: type[BaseModel] = SeraConfig, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every key below ``sera:`` that is not a block itself."""
    for name, field in model.model_fields.items():
        block = block_of(field.annotation)
        if block is not None:
            yield from keys(block, (*path, name))
        else:
            yield (*path, name), field


KEYS = {".".join(path): (path, field) for path, field in keys()}


def table(header: str) -> list[list[str]]:
    """Cells of the first table whose header row starts with ``header``."""
    lines = README.split(f"\n{header}", 1)[1].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        rows.append([cell.strip().replace("\\|", "|") for cell in cells])
    return rows


def named(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


SETTINGS = {row[0].strip("`"): row[1:] for row in table("| Key ")}


def test_every_key_of_the_block_is_in_the_table_and_no_other() -> None:
    assert list(SETTINGS) == list(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_row_agrees_with_the_model(key: str) -> None:
    path, field = KEYS[key]
    default, allowed, meaning = SETTINGS[key]
    assert default == f"`{json.dumps(field.default).strip(chr(34))}`"
    assert allowed == allowed_at(path)
    assert field.description
    assert meaning == field.description


def test_blocks_have_descriptions() -> None:
    fields = [*SeraConfig.model_fields.values(), *SeraArgs.model_fields.values()]
    assert all(field.description for field in fields)


def test_refused_keys_are_named() -> None:
    limits = README.split("## Limits")[1]
    missing = [key for key, *_ in _UNSUPPORTED if f"`{key}`" not in limits]
    assert not missing


def test_metrics_of_the_code_are_in_the_table() -> None:
    listed = named([row[0] for row in table("| Metric ")])
    source = Path(metrics.__file__).read_text(encoding="utf-8")
    body = source.split("def table_text")[0]
    found = set(re.findall(r'found\["(\w+)"\]|^\s+"(\w+)": ', body, re.MULTILINE))
    written = {name for pair in found for name in pair if name}
    written |= {f"margin_q{q:02d}" for q in metrics.QUANTILES}
    written |= {f"short_{reason.value}" for reason in Shortfall}
    written |= {f"guard_{signal.name}" for signal in fields(Signals)}
    assert {"threshold", "kept_overlap", "kl_policy_samples"} <= written
    assert written <= listed
    written |= {f"delta_q{q:02d}" for q in refinement.QUANTILES}
    written |= {f"delta_{what}" for what in ("mean", "std")}
    written |= {f"delta_{what}_correlation" for what in ("margin", "score")}
    others = {
        "accuracy_eval",
        "set_aside_eval",
        "seconds_training",
        "seconds_refining",
        "unrefined",
    }
    others |= {f"{what}_{n}" for what in ("seconds", "tokens_per_second") for n in ("scoring",)}
    others |= {"seconds_generation", "tokens_per_second_generation", "tokens_per_second_training"}
    assert listed == written | others


@pytest.mark.parametrize("file", ["margins", "rows", "candidates"])
def test_columns_of_the_artifacts_are_in_a_table(file: str) -> None:
    listed = named([r[0] for r in table_after(f"`{file}.parquet`:")])
    if file == "margins":
        source = Path(tables.__file__).read_text(encoding="utf-8").split("def from_arrow")[0]
        columns = set(re.findall(r'^\s+"(\w+)": ', source, re.MULTILINE))
    else:
        columns = set({"rows": tables.ROWS, "candidates": tables.CANDIDATES}[file].names)
    assert listed == columns


def table_after(text: str) -> list[list[str]]:
    rest = README.split(f"\n{text}\n", 1)[1].lstrip("\n")
    rows = []
    for line in rest.splitlines()[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.split("|")[1:-1]])
    return rows


def test_example_configs_are_named() -> None:
    for path in (ROOT / "example_configs").glob("*.yml"):
        assert f"`{path.name}`" in README


def test_links_to_files_work() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).is_file()


def test_every_rule_of_selection_is_in_the_table() -> None:
    listed = {row[0].strip("`") for row in table("| Rule ")}
    assert listed == {*RULES.names, RULES.own}
    assert "lossdiff_irm" in listed
