"""Builds wheel and sdist, and trains the demo with the wheel in an empty environment.

``python tests/package/wheel.py [--python PYTHON] [--keep FOLDER]``; ``make test-package`` runs it.
It needs a network or pip's cache, and some GB of disk: the environment gets all dependencies. The
checkout is not on any path: the environment, the demo and its output lie elsewhere.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "AXOLOTL_DO_NOT_TRACK": "1",
    "WANDB_MODE": "offline",
    "TOKENIZERS_PARALLELISM": "false",
    "AXOLOTL_DATASET_NUM_PROC": "0",
    "CUDA_VISIBLE_DEVICES": "",
}


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> None:
    print("$", *command, flush=True)
    subprocess.run([*map(str, command)], cwd=cwd, env=env, check=True)


def build(python: str, folder: Path) -> tuple[Path, Path]:
    """Make the sdist of the tracked files, and the wheel from the sdist; returns wheel, sdist."""
    source = folder / "source"
    source.mkdir()
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
    tools = folder / "tools"
    run(python, "-m", "venv", tools, cwd=folder)
    run(tools / "bin/pip", "install", "--quiet", "build", cwd=folder)
    dist = folder / "dist"
    run(tools / "bin/python", "-m", "build", "--outdir", dist, source, cwd=folder)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path) -> None:
    """What must be in both files, and what must not."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "sera_plugin").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert not package - inside, f"missing in the wheel: {sorted(package - inside)}"
    others = {name for name in inside - package if ".dist-info/" not in name}
    assert not others, f"should not be in the wheel: {sorted(others)}"
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    wanted = package | {"LICENSE", "README.md", "CHANGELOG.md", "example_configs/demo.yml"}
    assert not wanted - names, f"missing in the sdist: {sorted(wanted - names)}"


def train(python: str, wheel: Path, folder: Path) -> None:
    """The demo by the wheel alone."""
    env, work = folder / "env", folder / "work"
    work.mkdir()
    run(python, "-m", "venv", env, cwd=folder)
    run(env / "bin/python", "-m", "pip", "install", "--quiet", wheel, cwd=work)
    shutil.copytree(ROOT / "example_configs", work / "example_configs")
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    clean |= OFFLINE | {"PATH": f"{env / 'bin'}:{os.environ['PATH']}"}
    where = "import sera_plugin as s, sys; print(sys.version, s.__file__)"
    run(env / "bin/python", "-c", where, cwd=work, env=clean)
    run(env / "bin/python", "example_configs/make_demo.py", cwd=work, env=clean)
    run(env / "bin/axolotl", "train", "example_configs/demo.yml", cwd=work, env=clean)
    run(env / "bin/axolotl", "sera", "report", "demo-output/run", cwd=work, env=clean)
    made = work / "demo-output/run"
    for name in ("model.safetensors", "sera/round-03/margins.parquet", "sera/report.html"):
        assert (made / name).is_file(), f"the run left no {name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="the interpreter to test with")
    parser.add_argument("--keep", type=Path, help="an empty folder to leave everything in")
    parser.add_argument("--build-only", action="store_true", help="build and look inside, no more")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="sera-package-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        wheel, sdist = build(options.python, folder)
        check_contents(wheel, sdist)
        if not options.build_only:
            train(options.python, wheel, folder)
        print(f"{wheel.name} and {sdist.name}: built" + " and trained" * (not options.build_only))
    finally:
        if options.keep is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
