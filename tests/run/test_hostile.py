"""Text that means harm, and numbers that are none, through real runs."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import assets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from accelerate import Accelerator
from command_line import MakeConfig, RunCli, dataset_entry, output_dir
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import sera_plugin
from sera_plugin.data.margins import PairLogps
from sera_plugin.data.pairs import EvaluationPairs
from sera_plugin.data.store import RunStore
from sera_plugin.runtime.errors import BadNumbersError
from sera_plugin.runtime.weights import FiniteWeights

MARK = "\x1b[31mSERA-MARK"
TEXTS = {
    "controls": "".join(map(chr, range(32))) + "\x7f\x85",
    "terminal": f"{MARK}\x1b[2J\x1b]0;title\x07 \x9b31m",
    "lines": "one\ntwo\r\nthree\rfour\u2028five\u2029six\vseven\feight\x1cnine",
    "json": '"},{"prompt": "injected"}\n{"a": 1}',
    "html": "<script>alert('x')</script><img src=x onerror=alert(1)>&amp;",
    "template": "{{ 7*7 }} {# no #} ${HOME} $(id)",
    "special": "<|im_end|></s><s><|im_start|>[INST]<pad><|begin_of_text|>",
    "ending": "a<|eot_id|>b<|end_of_text|>c",
    "right to left": "\u202eevil\u202c \u2066x\u2069 \u200f\u200e",
    "planes": "".join(chr(plane * 0x10000 + 0x300) for plane in (0, 1, 2, 3, 14, 15, 16)),
    "combined": "e" + "\u0301" * 40 + "\ufeff\ufffe\uffff",
    "nul": "a\0b",
    "blank": " ",
    "long": "x" * 1_000_000,
}
# The embedding of this character's token is infinite: what follows it has no log-prob.
BAD = "%"
BAD_PAIRS, BAD_EVALUATION_PAIRS = 2, 1


def chat(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": prompt}],
        "chosen": {"role": "assistant", "content": chosen},
        "rejected": {"role": "assistant", "content": rejected},
    }


def hostile_rows() -> list[dict[str, Any]]:
    rows = list(assets.pairs(16))
    for name, text in TEXTS.items():
        rows.append(chat(f"{name} {text}", f"{text} good", "stone"))
        rows.append(chat(f"{name}?", "apple", f"bad {text}"))
    # Only the rejected answer of the one, both answers of the other.
    return [*rows, chat("river", "green", f"x {BAD} cloud"), chat(f"{BAD} paper", "music", "late")]


@pytest.fixture(scope="module")
def hostile(
    config: MakeConfig, run_cli: RunCli, llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The config of a run on hostile data with a model that has an infinite weight, its output."""
    folder = tmp_path_factory.mktemp("hostile")
    model = AutoModelForCausalLM.from_pretrained(llama)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    (token,) = tokenizer.encode(BAD, add_special_tokens=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = torch.inf
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    train = assets.write_jsonl(folder / "train.jsonl", hostile_rows())
    held_out = [*assets.pairs(8, 9), chat("north", f"a {BAD} b", "c")]
    path = config(
        base_model=str(folder / "model"),
        datasets=[dataset_entry(train)],
        test_datasets=[dataset_entry(assets.write_jsonl(folder / "eval.jsonl", held_out))],
        sequence_len=512,
        num_epochs=2,
        saves_per_epoch=2,
        sera={
            "max_set_aside": 0.3,
            "selection": {"keep": 1.0},
            "bootstrap": {"fraction": 0.8, "prompts": 1.0, "max_new_tokens": 48},
        },
    )
    return path, run_cli("train", path, "--launcher", "python")


def strict(text: str | bytes) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def round_of(config: Path) -> Path:
    return output_dir(config) / "sera/round-02"


@pytest.mark.cli
def test_the_log_holds_no_character_of_the_data_that_a_terminal_obeys(
    hostile: tuple[Path, str],
) -> None:
    out = hostile[1] + (output_dir(hostile[0]) / "debug.log").read_text(encoding="utf-8")
    assert "SeRA is done" in out
    for text in (MARK, "\x1b]0;", "\x1b[2J", "\x07", "\0", "\x9b", "\u202e", "\u2066"):
        assert text not in out, ascii(text)


@pytest.mark.cli
def test_artifacts_read_back_whatever_the_text(hostile: tuple[Path, str]) -> None:
    folder = output_dir(hostile[0]) / "sera"
    found = [*folder.rglob("*.json"), *folder.rglob("*.jsonl")]
    assert {path.name for path in found} >= {
        "run.json", "manifest.json", "summary.json", "bootstrapped.jsonl",
    }  # fmt: skip
    for path in found:
        raw = path.read_bytes()
        assert set(raw) <= {*range(32, 127), ord("\n")}, path
        # Whoever splits at every line end that Unicode knows finds the same lines.
        for line in raw.decode().splitlines() if path.suffix == ".jsonl" else [raw]:
            assert isinstance(strict(line), (dict, list)), path
    for path in folder.rglob("*.parquet"):
        assert pq.read_table(path).num_rows, path
    prompts = pq.read_table(folder / "pairs.parquet").column("prompt").to_pylist()
    for name, text in TEXTS.items():
        if name not in ("long", "blank"):
            assert any(f"{name} {text.strip()}" in prompt for prompt in prompts), name
    record = RunStore(output_dir(hostile[0])).read_round(2)
    assert record is not None
    assert set(record.table.ids) == set(
        pq.read_table(folder / "pairs.parquet").column("example_id").to_pylist()
    )


@pytest.mark.cli
def test_new_pairs_hold_the_hostile_prompts_as_they_were(hostile: tuple[Path, str]) -> None:
    folder = round_of(hostile[0])
    table = pq.read_table(folder.parent / "pairs.parquet").to_pylist()
    prompts = {row["example_id"]: row["prompt"] for row in table}
    lines = (folder / "bootstrapped.jsonl").read_text().splitlines()
    pairs = [strict(line) for line in lines]
    assert len(pairs) == strict((folder / "summary.json").read_text())["bootstrapped"] > 0
    for pair in pairs:
        assert pair["prompt"] == prompts[pair["example_id"]]
        assert {"chosen", "rejected"} <= pair.keys()
    # Which prompts give a pair is the model's doing.
    used = {n for n, text in TEXTS.items() if any(f"{n} {text}" in p["prompt"] for p in pairs)}
    assert len(used) >= 2, used


@pytest.mark.cli
def test_pairs_without_numbers_are_set_aside_counted_and_told(hostile: tuple[Path, str]) -> None:
    config, out = hostile
    folder = round_of(config)
    table = {
        row["example_id"]: row for row in pq.read_table(folder / "margins.parquet").to_pylist()
    }
    bad = {i for i, row in table.items() if not math.isfinite(row["margin"])}
    texts = pq.read_table(folder.parent / "pairs.parquet").to_pylist()
    assert bad == {
        row["example_id"] for row in texts if BAD in row["prompt"] or BAD in row["rejected"]
    }
    assert len(bad) == BAD_PAIRS
    summary = strict((folder / "summary.json").read_text())
    assert summary["set_aside"] == BAD_PAIRS
    assert summary["kept"] == len(table) - BAD_PAIRS
    warm_up = strict((folder.with_name("round-01") / "summary.json").read_text())
    assert (warm_up["kept"], warm_up["filled"]) == (len(table) - BAD_PAIRS, BAD_PAIRS)
    assert warm_up["set_aside_ids"] == sorted(bad)
    assert summary["set_aside_eval"] == BAD_EVALUATION_PAIRS
    assert summary["set_aside_answers"] > 0
    assert all(math.isfinite(value) for value in summary.values() if isinstance(value, float))
    assert f"{BAD_PAIRS} pairs are set aside" in out
    assert "'set_aside_answers'" in out
    rows = pq.read_table(folder / "rows.parquet").to_pylist()
    assert not bad & {row["example_id"] for row in rows if row["chosen_ids"] is None}
    assert summary["filled"] == BAD_PAIRS + summary["shortfall"]
    assert summary["filled"] == sum(row["filled"] for row in rows)
    candidates = pq.read_table(folder / "candidates.parquet").to_pylist()
    for name in ("policy_logp", "reference_logp", "log_ratio", "reward"):
        assert all(math.isfinite(candidate[name]) for candidate in candidates)
    last = max(output_dir(config).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    losses = [entry[name] for entry in history for name in ("loss", "eval_loss") if name in entry]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    weights = load_file(output_dir(config) / "model.safetensors")
    assert [n for n, w in weights.items() if not w.isfinite().all()] == [
        "model.embed_tokens.weight"
    ]


@pytest.mark.cli
def test_axolotl_trains_on_the_new_pairs_again(
    hostile: tuple[Path, str], config: MakeConfig, run_cli: RunCli
) -> None:
    lines = round_of(hostile[0]) / "bootstrapped.jsonl"
    path = config(
        drop=("plugins", "sera", "test_datasets", "evals_per_epoch"),
        datasets=[{"path": str(lines), "ds_type": "json", "split": "train"}],
        sequence_len=512,
        num_epochs=1,
        micro_batch_size=2,
    )
    out = run_cli("train", path, "--launcher", "python")
    assert "'loss'" in out
    assert MARK not in out
    assert (output_dir(path) / "model.safetensors").exists()


@pytest.mark.cli
def test_a_damaged_round_is_never_trained_on(
    hostile: tuple[Path, str], run_cli: RunCli, tmp_path: Path
) -> None:
    keys = yaml.safe_load(hostile[0].read_text())
    out = tmp_path / "out"
    shutil.copytree(output_dir(hostile[0]), out)
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(keys | {"output_dir": str(out)}))
    rows = out / "sera/round-02/rows.parquet"
    content = bytearray(rows.read_bytes())
    content[len(content) // 2] ^= 1
    rows.write_bytes(content)
    steps = sorted(int(p.name.split("-")[1]) for p in out.glob("checkpoint-*"))
    within = out / f"checkpoint-{steps[2]}"
    log = run_cli(
        *("train", path, "--launcher", "python", "--resume-from-checkpoint"),
        within,
        expect_failure=True,
    )
    assert (
        f"can't resume: {rows} is damaged (its content doesn't match manifest.json); restore it, "
        "or resume from a checkpoint of round 1, from which round 2 is made anew."
    ) in log
    assert rows.read_bytes() == content
    assert not list(out.glob("sera-earlier-*"))


@pytest.mark.cli
def test_ruined_weights_end_the_run_and_the_last_good_checkpoint_stays(
    config: MakeConfig, run_cli: RunCli, tmp_path: Path
) -> None:
    (tmp_path / "ruin.py").write_text(
        "from axolotl.integrations.base import BasePlugin\n"
        "from transformers import TrainerCallback\n"
        "class Ruin(TrainerCallback):\n"
        "    def on_step_begin(self, args, state, control, model=None, **kwargs):\n"
        "        if state.global_step == 3:\n"
        "            model.lm_head.weight.data[3, 2] = float('nan')\n"
        "class Plugin(BasePlugin):\n"
        "    def add_callbacks_pre_trainer(self, cfg, model):\n"
        "        return [Ruin()]\n"
    )
    path = config(
        plugins=["ruin.Plugin", "sera_plugin.SeRAPlugin"], saves_per_epoch=4, save_total_limit=1
    )
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    out = run_cli("train", path, "--launcher", "python", env=env, expect_failure=True)
    assert re.search(
        r"step 4: \d+ parameters have weights that are not finite numbers and nothing is saved; "
        "resume from the last checkpoint with a lower learning_rate or another precision.",
        out,
    )
    folder = output_dir(path)
    assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert (folder / "checkpoint-2/trainer_state.json").exists()
    assert all(
        w.isfinite().all() for w in load_file(folder / "checkpoint-2/model.safetensors").values()
    )
    assert not (folder / "model.safetensors").exists()
    assert not (folder / "sera/round-02").exists()


def test_weights_that_became_bad_are_found_and_those_of_the_start_allowed() -> None:
    model = assets.small_llama(30)
    with torch.no_grad():
        model.model.embed_tokens.weight[1, 1] = torch.inf
    model.model.norm.weight.requires_grad = False
    weights = FiniteWeights(model, Accelerator(cpu=True))
    weights.check(1)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan  # not trained
    weights.check(2)
    with torch.no_grad():
        model.lm_head.weight[3, 3] = -torch.inf
    with pytest.raises(BadNumbersError, match=r"^step 3: 2 parameters have .*\.$"):
        weights.check(3)


def logps(values: list[float]) -> PairLogps:
    return PairLogps(("a", "b", "c"), np.array(values), np.zeros(3))


def test_evaluation_pairs_without_numbers_are_left_out_and_come_back() -> None:
    tokens = [[1, 2], [3], [4, 5]]
    columns = {"prompt_ids": tokens, "chosen_ids": tokens, "rejected_ids": tokens}
    dataset = Dataset.from_dict(columns)
    held_out = EvaluationPairs({"one": dataset, "two": dataset}, 10, 0.4)
    one = held_out.with_reference("one", logps([-1.0, math.nan, -2.0]))
    assert one["one"]["prompt_ids"] == [[1, 2], [4, 5]]
    assert one["one"]["ref_chosen_logps"] == [-1.0, -2.0]
    both = held_out.with_reference("two", logps([-1.0, -3.0, -2.0]))
    assert [len(both[name]) for name in ("one", "two")] == [2, 3]
    assert len(held_out.with_reference("one", logps([-1.0, -3.0, -2.0]))["one"]) == 3
    with pytest.raises(BadNumbersError, match=r"^the reference of the pairs in one: 2 of 3 pairs"):
        held_out.with_reference("one", logps([math.inf, -math.inf, 0.0]))
    assert (
        len(EvaluationPairs(dataset, 10, 0.4).with_reference("eval", logps([0.0, 0.0, 0.0]))) == 3
    )
    assert EvaluationPairs(None, 10, 0.4).pairs == {}


# Reading any of these from a file runs what the file says.
FORBIDDEN = {
    "pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "eval", "exec",
    "allow_pickle", "unsafe_load", "read_pickle", "full_load",
}  # fmt: skip


def test_nothing_of_the_package_reads_pickles() -> None:
    for path in Path(sera_plugin.__file__).parent.rglob("*.py"):
        if path.parts[-2:] == ("runtime", "ranks.py"):
            continue  # what ranks of one run send each other, as torch.distributed does; no file
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {getattr(node, field, None) for field in ("id", "attr", "arg", "module")}
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.Attribute) and node.attr == "eval":
                names.discard("eval")  # of a module: evaluation mode
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            assert not names & FORBIDDEN, where
            if isinstance(node, ast.Attribute) and node.attr == "load":
                owner = ast.unparse(node.value)
                assert owner not in ("torch", "np", "numpy", "yaml"), where
