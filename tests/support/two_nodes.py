"""Test-only launcher: an agent of torchrun on each of two nodes, which share the network alone.

``python two_nodes.py PORT NODE0 NODE1 ARGS`` runs ``axolotl ARGS`` in the folders of both nodes at
once, each with caches of its own, and ends with the larger of their exit codes; each node's
``log`` has what it said.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

CACHES = ("HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TMPDIR")


def start(number: int, folder: Path, port: str, args: list[str]) -> int:
    """Start a node's agent; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.chdir(folder)
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _own_caches(folder)
        launcher = ["--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(number)]
        launcher += ["--master_addr", "127.0.0.1", "--master_port", port]
        sys.argv = ["axolotl", *args, "--launcher", "torchrun", "--", *launcher]
        from axolotl.cli.main import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _own_caches(folder: Path) -> None:
    for name in CACHES:
        cache = folder / "caches" / name.lower()
        cache.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(cache)
    import datasets
    import huggingface_hub.constants

    # Where they are imported already, the variables come too late.
    datasets.config.HF_DATASETS_CACHE = Path(os.environ["HF_DATASETS_CACHE"])
    huggingface_hub.constants.HF_HOME = os.environ["HF_HOME"]


def run(port: str, nodes: list[str], args: list[str]) -> int:
    agents = [start(number, Path(node), port, args) for number, node in enumerate(nodes)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(agent, 0)[1]) for agent in agents]
    for node in nodes:
        print(f"--- {node}\n{Path(node, 'log').read_text(errors='replace')[-6000:]}", flush=True)
    return max(map(abs, codes))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:4], sys.argv[4:]))
