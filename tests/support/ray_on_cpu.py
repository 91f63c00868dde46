"""Test-only launcher: ``python ray_on_cpu.py CONFIG`` trains with Ray's workers on a CPU.

Axolotl asks Ray for workers with a GPU each, whatever the config says; here they have none. Nothing
else of Ray or Axolotl is replaced. Workers see the environment of this process.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import ray
import ray.train
from axolotl.cli.main import main

WORKERS = 2
PASSED_ON = (
    "ACCELERATE", "AXOLOTL", "DIE_AT", "DS_", "HF_", "OMP_", "PYTHONPATH", "TOKENIZERS",
    "TRANSFORMERS", "WANDB",
)  # fmt: skip


def _workers_on_cpu() -> None:
    original = ray.train.ScalingConfig.__init__

    def init(self: Any, **keys: Any) -> None:
        original(self, **{**keys, "use_gpu": False, "resources_per_worker": {"CPU": 1}})

    ray.train.ScalingConfig.__init__ = init


if __name__ == "__main__":
    _workers_on_cpu()
    variables = {name: v for name, v in os.environ.items() if name.startswith(PASSED_ON)}
    # Ray counts its own process that looks after the workers as one more.
    ray.init(num_cpus=WORKERS + 1, include_dashboard=False, runtime_env={"env_vars": variables})
    sys.argv = ["axolotl", "train", sys.argv[1], "--launcher", "python", *sys.argv[2:]]
    main()
