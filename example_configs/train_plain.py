"""Train ``demo.yml`` without SeRA, as ``SERA=off axolotl train example_configs/demo.yml`` does.

Axolotl's DPO trainer looks for garbage after every micro-batch, which takes much longer than a step
of this small model; SeRA's trainer does not. Here what the imports have left is out of its sight.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
from pathlib import Path

# Not the trainers: Axolotl patches TRL before it imports them.
IMPORTED = ("axolotl.cli.train", "axolotl.common.datasets", "axolotl.train", "deepspeed")


def main() -> None:
    os.environ["SERA"] = "off"
    train, *_ = map(importlib.import_module, IMPORTED)
    gc.freeze()
    atexit.register(gc.unfreeze)
    train.do_cli(
        str(Path(__file__).with_name("demo.yml")),
        output_dir="demo-output/plain",
        dataset_prepared_path="demo-output/plain-prepared",
    )


if __name__ == "__main__":
    main()
