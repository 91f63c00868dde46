"""``python -m benchmarks.gpu_check``: all checks, one after the other, and their table."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PLAIN = ("scoring", "attention", "engines", "losses", "qlora", "memory")
RUNS = ("qlora run", "vllm", "bench")
PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "bitsandbytes", "flash-attn"),
    *("trl", "axolotl", "vllm"),
)
MINUTES = 20.0


class Without(MetaPathFinder):
    """Makes packages that are installed look as if they were not."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = set(packages)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def one(name: str, device: str, folder: Path) -> dict[str, Any]:
    """Make one check in this process."""
    import torch

    from benchmarks.gpu_check.found import Machine, Skipped

    try:
        if name in RUNS:
            from benchmarks.gpu_check import runs as checks
        else:
            from benchmarks.gpu_check import plain as checks  # type: ignore[no-redef]
        found = checks.CHECKS[name](Machine(torch.device(device), folder))
    except Skipped as why:
        return {"skipped": str(why)}
    return {"rows": [asdict(row) for row in found]}


def in_a_process(name: str, options: argparse.Namespace, left: float) -> dict[str, Any]:
    """Make one check in a process of its own; what it raises is its result."""
    with tempfile.TemporaryDirectory(prefix="sera-gpu-check-") as folder:
        answer, log = Path(folder, "answer.json"), Path(folder, "log")
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", options.device]
        command += ["--one", name, "--folder", folder]
        command += ["--without", *options.without] if options.without else []
        with log.open("wb") as output:
            child = subprocess.Popen(
                command, cwd=ROOT, env=_offline(), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                child.wait(timeout=left)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                return {"failed": f"no end within the {left:.0f} seconds that were left"}
        if answer.is_file():
            return json.loads(answer.read_text(encoding="utf-8"))
        said = log.read_text(errors="replace").strip().splitlines() or [""]
        print("\n".join(said[-30:]), file=sys.stderr)
        return {"failed": said[-1][:300]}


def _offline() -> dict[str, str]:
    """No network, and modules of the checkout."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "DO_NOT_TRACK")
    more = dict.fromkeys((*names, "AXOLOTL_DO_NOT_TRACK"), "1")
    return os.environ | more | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}


def machine_line(device: str, without: Sequence[str]) -> str:
    """Device and versions, no names of hosts or users."""
    import torch

    where = torch.cuda.get_device_name(0) if device == "cuda" else "no GPU, tiny sizes"
    found = [where, f"Python {sys.version.split()[0]}"]
    for package in PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        found.append(f"{package} {'left out' if package in without else version}")
    return ", ".join(found)


def table(results: dict[str, dict[str, Any]], head: str) -> str:
    """All results in Markdown; a check that printed a table of its own comes behind."""
    lines = [
        "# Checks on a GPU",
        "",
        head,
        "",
        "| check | what | found | bar | |",
        "|" + "---|" * 5,
    ]
    behind = []
    for name, result in results.items():
        if "rows" not in result:
            how, why = next(iter(result.items()))
            lines.append(f"| {name} | | {_cell(why)} | | {how} |")
        for row in result.get("rows", ()):
            if "\n" in row["found"]:
                behind += ["", f"## {row['what']}", "", row["found"].strip()]
                row = row | {"found": "below"}
            outcome = "holds" if row["held"] else "**does not hold**"
            cells = (name, row["what"], row["found"], row["bar"], outcome if row["bar"] else "")
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join([*lines, *behind]) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="*", choices=(*PLAIN, *RUNS), help="checks by name")
    parser.add_argument("--without", nargs="*", default=[], help="packages to do without")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.without:
        sys.meta_path.insert(0, Without(options.without))
    if options.one:
        found = one(options.one, options.device, options.folder)
        (options.folder / "answer.json").write_text(json.dumps(found), encoding="utf-8")
        return 0
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("This PyTorch finds no GPU; `--device cpu` tries the checks themselves.")
        return 2
    return check_all(options)


def check_all(options: argparse.Namespace) -> int:
    """Make all checks and write their table; 1 if one failed or a bar was not held."""
    start, results = time.monotonic(), {}
    host = all(_found(package, options.without) for package in ("axolotl", "trl"))
    for name in options.only or (*PLAIN, *RUNS):
        left = 60 * MINUTES - (time.monotonic() - start)
        if name in RUNS and not host:
            results[name] = {"skipped": "axolotl is not installed; this check starts its runs"}
        elif left < 30:
            results[name] = {"skipped": f"the {MINUTES:.0f} minutes were over"}
        else:
            results[name] = in_a_process(name, options, left)
        print(f"{name}: {json.dumps(results[name], ensure_ascii=False)[:300]}", flush=True)
    today = datetime.now(UTC).date().isoformat()
    words = [word for word in sys.argv[1:] if word != str(options.out) and word != "--out"]
    head = (
        f"{today}, {machine_line(options.device, options.without)}. "
        f"`{' '.join(['python -m benchmarks.gpu_check', *words])}`, "
        f"{(time.monotonic() - start) / 60:.1f} minutes."
    )
    if not host:
        head += " Without Axolotl: what needs torch, transformers and peft alone."
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{today}-gpu-check{'-cpu' * (options.device == 'cpu')}.md"
    path.write_text(table(results, head), encoding="utf-8")
    print(f"\n{path.read_text(encoding='utf-8')}\nWritten to {path}")
    good = all(
        "skipped" in result or all(row["held"] for row in result.get("rows", [{"held": False}]))
        for result in results.values()
    )
    return 0 if good else 1


def _found(package: str, without: Sequence[str]) -> bool:
    return package not in without and importlib.util.find_spec(package) is not None


if __name__ == "__main__":
    sys.exit(main())
