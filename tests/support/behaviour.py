"""What runs leave, as checksums: `record` before a change, `compare` after it.

    python tests/support/behaviour.py record before.json
    python tests/support/behaviour.py compare before.json

The runs are those of ``RUNS``, in folders made anew; weights and tables are compared to the byte,
JSON without the times in it. ``compare`` names every file that differs and leaves with 1. Checksums
hold for one machine and one set of packages, so they are not kept in the repository.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
sys.path[:0] = [str(ROOT), str(TESTS / "support"), str(TESTS)]

UNEQUAL = re.compile(r"second|runtime|_time$|memory|mem_|version|sera_plugin|\bsha256\b")
"""Keys of times and versions, and of the checksum that a file with such keys or paths holds."""
ONE = ("--launcher", "python")
TWO = ("--launcher", "torchrun", "--", "--standalone", "--nproc_per_node", "2")
LORA = {
    "adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True,
}  # fmt: skip
GUARDED_OFF = {"max_new_tokens": 16, "guard": False}
TWO_RANKS = {
    "DS_ACCELERATOR": "cpu", "ACCELERATE_TORCH_DEVICE": "cpu", "MASTER_ADDR": "127.0.0.1",
}  # fmt: skip


def runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Changes of the common config by the name of a run."""
    zero3 = folder / "zero3.json"
    auto = dict.fromkeys(
        ("gradient_accumulation_steps", "train_batch_size", "train_micro_batch_size_per_gpu"),
        "auto",
    )
    stage = {
        "stage": 3, "overlap_comm": False, "reduce_bucket_size": 500_000,
        "stage3_prefetch_bucket_size": 500_000, "stage3_param_persistence_threshold": 100,
        "stage3_gather_16bit_weights_on_model_save": True,
    }  # fmt: skip
    zero3.write_text(json.dumps({"zero_optimization": stage, "bf16": {"enabled": False}, **auto}))
    return {
        "ipo_lora": {
            "rl": "ipo",
            **LORA,
            "sera": {"bootstrap": GUARDED_OFF | {"sampler": "mixed"}},
        },
        "resumed": {
            "saves_per_epoch": 4,
            "learning_rate": 5e-3,
            "sera": {"reference": "previous", "bootstrap": GUARDED_OFF},
        },
        "refined": {
            "sera": {
                "refine": {"weight": 0.05, "source": "round", "prompt": "Answer well."},
                "selection": {"uncertainty": 0.5, "source": "training"},
                "bootstrap": GUARDED_OFF | {"ensemble": True, "engine": "transformers_paged"},
            }
        },
        "lossdiff": {
            "sera": {"selection": {"rule": "lossdiff_irm"}, "bootstrap": {"max_new_tokens": 8}}
        },
        "zero3": {"micro_batch_size": 2, "deepspeed": str(zero3)},
    }


def make_configs(folder: Path) -> dict[str, Path]:
    """A model, data and a YAML for every run."""
    import assets
    from command_line import run_keys

    rows = [*assets.pairs(64), *assets.pairs(12, 9)]
    texts = [
        part["content"]
        for row in rows
        for part in (row["messages"][0], row["chosen"], row["rejected"])
    ]
    model = assets.save_model(folder / "model", "llama", texts)
    data = {
        "train": assets.write_jsonl(folder / "train.jsonl", assets.pairs(64)),
        "eval": assets.write_jsonl(folder / "eval.jsonl", assets.pairs(12, 9)),
    }
    configs = {}
    for name, changes in runs(folder).items():
        keys = run_keys(model, data["train"], data["eval"], folder / name)
        keys["plugins"] = ["cpu_ranks.CpuRanks", *keys["plugins"]]
        configs[name] = folder / f"{name}.yml"
        configs[name].write_text(yaml.safe_dump(keys | changes))
    return configs


def execute(folder: Path) -> dict[str, Path]:
    """Run everything; the output folders by name."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1", "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "",
        "AXOLOTL_DATASET_NUM_PROC": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path[:3]),
    }  # fmt: skip

    def axolotl(*args: str | Path, ends: int = 0, **more: str) -> None:
        log = folder / "log.txt"
        with log.open("ab") as output:
            done = subprocess.run(
                ["axolotl", *map(str, args)],
                cwd=folder,
                env=environment | more,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode != ends:
            raise SystemExit(f"axolotl {args} left with {done.returncode}; see {log}")

    demo = ROOT / "example_configs"
    subprocess.run(
        [sys.executable, demo / "make_demo.py"], cwd=folder, env=environment, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    axolotl("train", demo / "demo.yml", *ONE)
    out = folder / "demo-output/run"
    axolotl("sera", "export", out, "--round", "2", "--out", out / "exported")
    found = {"demo": out}
    for name, config in make_configs(folder).items():
        launch, more = (TWO, TWO_RANKS) if name == "zero3" else (ONE, {})
        if name == "resumed":
            axolotl("train", config, *ONE, ends=-9, DIE_AT_STEP="13")
            axolotl("train", config, "--auto-resume-from-checkpoints", *ONE)
        else:
            axolotl("train", config, *launch, **more)
        found[name] = folder / name / "out"
    return found


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not UNEQUAL.search(k)}
    if isinstance(value, list):
        items = [without_times(v) for v in value]
        # peft writes sets of names in an order of its own.
        return sorted(items) if all(isinstance(v, str) for v in items) else items
    return value


def checksum(path: Path, folder: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".json":
        text = content.decode().replace(str(folder), "<folder>")
        content = json.dumps(without_times(json.loads(text)), sort_keys=True).encode()
    elif path.suffix in (".md", ".yml", ".yaml"):
        content = content.decode().replace(str(folder), "<folder>").encode()
    return hashlib.sha256(content).hexdigest()[:16]


def record() -> dict[str, str]:
    """Checksums of what all runs leave, by run and path."""
    folder = Path(tempfile.mkdtemp(prefix="behaviour-"))
    kept = {".parquet", ".jsonl", ".json", ".safetensors"}
    found = {
        f"{name}/{path.relative_to(out)}": checksum(path, folder)
        for name, out in execute(folder).items()
        for path in sorted(out.rglob("*"))
        if path.suffix in kept and path.is_file()
    }
    shutil.rmtree(folder)
    return found


def main() -> None:
    what, file = sys.argv[1], Path(sys.argv[2])
    found = record()
    if what == "record":
        file.write_text(json.dumps(found, indent=1))
        print(f"{len(found)} files recorded")
        return
    before = json.loads(file.read_text())
    differing = sorted(
        name for name in before.keys() | found.keys() if before.get(name) != found.get(name)
    )
    print(f"{len(before)} files before, {len(found)} now, {len(differing)} differ")
    for name in differing:
        print(name, before.get(name, "absent"), found.get(name, "absent"))
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
