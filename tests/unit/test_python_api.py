"""Pure modules and scoring need no Axolotl, and the example of docs/python-api.md runs without."""

from __future__ import annotations

import configparser
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from snippets import python_blocks

ROOT = Path(__file__).parents[2]
CONTRACTS = configparser.ConfigParser()
CONTRACTS.read(ROOT / ".importlinter")

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Blocked())
"""

GIVEN = """
import copy, torch, assets
from datasets import Dataset

rows = list(assets.pairs(10))
texts = [[row["messages"][0]["content"], *(row[s]["content"] for s in ("chosen", "rejected"))]
         for row in rows]
tokenizer = assets.tokenizer([text for row in texts for text in row], "qwen")
dataset = Dataset.from_list([
    {"prompt": f"<|im_start|>{x}", "chosen": f"{y}<|im_end|>", "rejected": f"{z}<|im_end|>"}
    for x, y, z in texts
])
reference = assets.small_llama(
    len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
).eval()
policy = copy.deepcopy(reference)
with torch.no_grad():
    for weight in policy.parameters():
        weight += 0.1 * torch.randn_like(weight)
policy.generation_config.exponential_decay_length_penalty = (3, 1.5)  # so that it ends
"""

FOUND = """
import json, sys
from slow_reference import logp

def slow(row, name):
    prompt, answer = (tokenizer(row[n]).input_ids for n in ("prompt", name))
    return logp(policy, prompt, answer) - logp(reference, prompt, answer)

print(json.dumps({
    "imported": sorted({"axolotl", "trl"} & set(sys.modules)),
    "margin": margin.tolist(),
    "expected": [slow(row, "chosen") - slow(row, "rejected") for row in dataset],
    "kept": [dataset["prompt"].index(prompt) for prompt in kept["prompt"]],
    "new": [[pair.margin, pair.chosen.log_ratio, pair.rejected.log_ratio] for pair in bootstrapped],
    "short": sum(without_a_pair.values()),
}))
"""


def run(blocked: set[str], code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(names=blocked) + code],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}", "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("contract", ["pure", "plain"])
def test_modules_import_without_what_their_contract_forbids(contract: str) -> None:
    section = CONTRACTS[f"importlinter:contract:{contract}"]
    modules, forbidden = section["source_modules"].split(), section["forbidden_modules"].split()
    folders = {name: ROOT / name.replace(".", "/") for name in modules}
    inner = [f"{n}.{p.stem}" for n, folder in folders.items() for p in folder.glob("[!_]*.py")]
    refused = "try:\n import axolotl\n raise SystemExit('not blocked')\nexcept ImportError: pass\n"
    imports = "".join(f"import {name}\n" for name in [*modules, *inner])
    run(set(forbidden), refused + imports)


def test_the_example_scores_selects_and_pairs_on_plain_transformers() -> None:
    (code,) = python_blocks(ROOT / "docs/python-api.md")
    found = json.loads(run({"axolotl", "trl"}, GIVEN + code + FOUND).splitlines()[-1])
    assert found["imported"] == []
    np.testing.assert_allclose(found["margin"], found["expected"], atol=1e-4)
    assert sorted(found["kept"]) == sorted(np.argsort(found["margin"])[-7:])
    assert len(found["new"]) + found["short"] == 10
    assert len(found["new"]) >= 5
    for margin, best, worst in found["new"]:
        assert margin == pytest.approx(0.1 * (best - worst))
        assert margin > 0
