"""README, CONTRIBUTING and the pages of docs/ agree with the code and with each other."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sera_plugin.commands.cli import sera
from sera_plugin.config import SeraArgs, SeraConfig, parse_block
from sera_plugin.config.parsing import allowed_at, block_of
from sera_plugin.config.parts import RULES
from sera_plugin.config.presets import PRESETS
from sera_plugin.data.columns import (
    BootstrappedPairs,
    Candidates,
    Margins,
    Pairs,
    Refinement,
    Rows,
)
from sera_plugin.data.metrics import METRICS
from sera_plugin.host.checks import _UNSUPPORTED

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sera_plugin"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
}


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


def rows_of(table: str) -> list[list[str]]:
    """Cells of a table, without its header."""
    rows = []
    for line in table.splitlines()[2:]:
        if not line.startswith("|"):
            break
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        rows.append([cell.strip().replace("\\|", "|") for cell in cells])
    return rows


def all_rows(page: str, header: str) -> list[list[str]]:
    """Cells of all tables of a page whose header row starts with ``header``."""
    parts = PAGES[page].split(f"\n{header}")[1:]
    return [row for part in parts for row in rows_of(part)]


def generated(page: str, name: str) -> list[list[str]]:
    """Cells of the table in a generated part."""
    body = PAGES[page].split(f"<!-- generated: {name} -->\n\n")[1].split("\n\n<!-- end -->")[0]
    return rows_of(body)


def named(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


SETTINGS = {row[0].strip("`"): row[1:] for row in all_rows("docs/configuration.md", "| Key ")}


def test_every_key_of_the_block_is_in_a_table_and_no_other() -> None:
    assert sorted(SETTINGS) == sorted(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_row_agrees_with_the_model(key: str) -> None:
    path, field = KEYS[key]
    default, allowed, meaning = SETTINGS[key]
    assert default == f"`{json.dumps(field.default).strip(chr(34)) or chr(34) * 2}`"
    assert allowed == allowed_at(path)
    assert field.description
    assert meaning == field.description


def test_blocks_have_descriptions() -> None:
    fields = [*SeraConfig.model_fields.values(), *SeraArgs.model_fields.values()]
    assert all(field.description for field in fields)


def test_presets_are_on_the_page_and_their_values_are_those_of_the_code() -> None:
    listed = all_rows("docs/configuration.md", "| Preset ")
    assert {row[0].strip("`") for row in listed} == set(PRESETS)
    values = {row[0].strip("`"): row[1] for row in listed[len(PRESETS) :]}
    for name in PRESETS:
        written: dict[str, object] = {"preset": name}
        for entry in re.findall(r"`([\w.]+: [^`]+)`", values[name]):
            path, value = entry.split(": ")
            block = written
            *blocks, key = path.split(".")
            for part in blocks:
                block = block.setdefault(part, {})  # type: ignore[assignment]
            block[key] = yaml.safe_load(value)
        assert parse_block(written) == parse_block({"preset": name})


def test_keys_in_the_readme_have_the_defaults_of_the_code() -> None:
    listed = all_rows("README.md", "| Key ")
    assert len(listed) == 8
    for row in listed:
        assert row[1] == SETTINGS[row[0].strip("`")][0]


def test_refused_keys_are_named() -> None:
    refused = PAGES["docs/configuration.md"].split("## What is refused")[1].split("\n## ")[0]
    missing = [key for key, *_ in _UNSUPPORTED if f"`{key}`" not in refused]
    assert not missing


def test_metrics_and_columns_of_the_code_are_on_the_pages() -> None:
    listed = named([row[0] for row in generated("docs/metrics.md", "metrics")])
    assert listed == {metric.name for metric in METRICS}
    for columns in (Pairs, Margins, Rows, Candidates, BootstrappedPairs, Refinement):
        rows = generated("docs/artifacts.md", columns.file)
        assert named([row[0] for row in rows]) == set(columns)


def test_every_rule_of_selection_is_in_the_table() -> None:
    listed = {row[0].strip("`") for row in all_rows("docs/selection.md", "| Rule ")}
    assert listed == {*RULES.names, RULES.own}
    assert "lossdiff_irm" in listed


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 200


def test_example_configs_are_named() -> None:
    for path in (ROOT / "example_configs").glob("*.yml"):
        assert f"`{path.name}`" in PAGES["README.md"]
        assert f"`{path.name}`" in PAGES["docs/configuration.md"]


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|<!--.*?-->|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    ascii_only = (
        unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        for heading in headings
    )
    return {
        re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()) for text in ascii_only
    }


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(PAGES[page])):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = folder / path if path else ROOT / page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_readme_and_in_the_sites_menu() -> None:
    menu = (ROOT / "docs/site/mkdocs.yml").read_text(encoding="utf-8").split("\nplugins:")[0]
    for page in PAGES:
        if page.startswith("docs/"):
            assert f"]({page})" in PAGES["README.md"]
            assert f"- {page.removeprefix('docs/')}\n" in menu


def snippets() -> Iterator[tuple[str, str]]:
    """YAML and diffs of YAML with a ``sera:`` block; of a diff, what stands after it."""
    for page, text in PAGES.items():
        for kind, body in re.findall(r"```(yaml|diff)\n(.*?)```", text, re.DOTALL):
            lines = [line for line in body.splitlines() if kind == "yaml" or line[:1] != "-"]
            after = "\n".join(line[1:] if kind == "diff" else line for line in lines)
            if re.search(r"^sera:", after, re.MULTILINE):
                yield page, after


@pytest.mark.parametrize(("page", "text"), snippets())
def test_examples_parse(page: str, text: str) -> None:
    assert isinstance(parse_block(yaml.safe_load(text)["sera"]), SeraConfig)


def test_examples_are_on_the_pages_that_need_them() -> None:
    assert {"README.md", "docs/configuration.md", "docs/selection.md", "docs/extending.md"} <= {
        page for page, _ in snippets()
    }


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "docs/generate.py", *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_generated_pages_are_what_the_package_says() -> None:
    done = generate("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_stale_pages_are_found_and_filled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    import generate as generator

    page = tmp_path / "page.md"
    page.write_text("a\n<!-- generated: configuration -->\nSTALE\n<!-- end -->\nb\n")
    [(stale, made)] = generator.stale(tmp_path)
    assert stale == page
    assert "STALE" not in made
    assert "`selection.keep`" in made
    assert made.startswith("a\n")
    assert made.endswith("<!-- end -->\nb\n")
    page.write_text(made)
    assert not list(generator.stale(tmp_path))
    with pytest.raises(ValueError, match="Unknown part 'configuratoin'"):
        generator.filled("<!-- generated: configuratoin -->\n<!-- end -->\n")


def test_the_schema_command_prints_json_or_the_tables_of_the_page() -> None:
    tables = CliRunner().invoke(sera, ["schema", "--markdown"])
    assert tables.exit_code == 0
    assert tables.output in PAGES["docs/configuration.md"]
    assert tables.output.startswith("### `sera`\n")
    plain = CliRunner().invoke(sera, ["schema"])
    assert json.loads(plain.output) == SeraConfig.model_json_schema()


GLOSSARY = [
    row
    for header in ("| Word | Symbol ", "| Word | Meaning ")
    for row in all_rows("docs/glossary.md", header)
]


def defined_in(module: Path) -> set[str]:
    tree = ast.parse(module.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)} | {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())
REFERENCE = re.compile(rf"`((?:{'|'.join(ROOMS)})\.\w+(?:\.\w+)?)`")


@pytest.mark.parametrize("page", ["docs/glossary.md", "docs/design.md"])
def test_what_a_page_names_is_in_the_code(page: str) -> None:
    found = set(REFERENCE.findall(PAGES[page])) - set(KEYS)
    named = 0
    for reference in found:
        room, module, *name = reference.split(".")
        if (PACKAGE / room / f"{module}.py").is_file():
            assert set(name) <= defined_in(PACKAGE / room / f"{module}.py"), reference
            named += 1
        else:
            assert (PACKAGE / room / module).is_dir(), reference
    assert named > 15


def test_columns_and_metrics_of_the_glossary_are_stored() -> None:
    stored = {
        name
        for page in ("docs/artifacts.md", "docs/metrics.md")
        for name in re.findall(r"`([^`\n]+)`", PAGES[page])
    }
    assert len(GLOSSARY) > 35
    for row in GLOSSARY:
        for kind, names in re.findall(r"(columns?|metrics?)((?: and|,)?(?: `\w+`,?)+)", row[-1]):
            for name in re.findall(r"`(\w+)`", names):
                assert name in stored, (row[0], kind, name)


def test_the_glossarys_words_are_those_that_the_pages_use() -> None:
    avoided = r"\b(fresh pairs?|new pairs?|fresh answers?|rollouts?)\b"
    written = {"docs/evidence.md", "docs/glossary.md", "docs/benchmarks.md"}
    for page, text in PAGES.items():
        if page not in written:
            assert not re.findall(avoided, without_code(text)), page
