"""One arm through Axolotl's own entry point, in a forked process.

The parent imports Axolotl once. Every run is a fork of it that calls ``axolotl.cli.train.do_cli``,
which is what ``axolotl train`` starts; so a run costs no imports, and leaves nothing behind in the
process that the next one would see.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import yaml

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "AXOLOTL_DO_NOT_TRACK": "1",
    "WANDB_MODE": "offline",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Any other number makes `datasets` spawn processes that each import everything again.
    "AXOLOTL_DATASET_NUM_PROC": "0",
}
PRELOADED = (
    "axolotl.cli.config",
    "axolotl.cli.checks",
    "axolotl.common.datasets",
    "axolotl.train",
    "trackio",
    "wandb",
    "deepspeed",
    "evaluate",
    "transformers.models.llama.modeling_llama",
    "benchmarks.evidence.probe",
)
"""Imported before forking. Not the trainers: Axolotl patches TRL before it imports them."""


RECIPE: dict[str, Any] = {
    "rl": "dpo",
    "sequence_len": 48,
    "micro_batch_size": 32,
    "gradient_accumulation_steps": 1,
    "optimizer": "adamw_torch",
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.05,
    "val_set_size": 0,
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "precompute_ref_log_probs": True,
}
"""Keys of all arms that determine the result."""


def base_config(model: Path, data: Path, output: Path) -> dict[str, Any]:
    """The keys that all arms share."""
    return RECIPE | {
        "base_model": str(model),
        "datasets": [{"path": str(data), "ds_type": "json", "split": "train"}],
        "dataset_prepared_path": str(output / "prepared"),
        "output_dir": str(output / "out"),
        "logging_steps": 1,
        "save_strategy": "no",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
    }


def train(config: Mapping[str, Any], folder: Path) -> None:
    """Run ``axolotl train`` on a config, in this process.

    Args:
        config: the YAML's keys.
        folder: where the YAML and the log are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    from axolotl.cli.train import do_cli

    sys.argv = ["axolotl", str(path)]
    do_cli(str(path))


def prepare_parent() -> None:
    """Import once what every run needs, and keep the garbage collector off it."""
    os.environ |= OFFLINE
    import torch

    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)
    # The host's trainer collects garbage on every micro-batch.
    gc.freeze()


def _text_stream(descriptor: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), write_through=True)


def _child(job: Callable[[], Any], log: Path, sender: Any) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = _text_stream(1), _text_stream(2)
        try:
            sender.send((True, job()))
        except BaseException:
            traceback.print_exc()
            sender.send((False, traceback.format_exc()))
        sys.stdout.flush()
        sys.stderr.flush()
    # Without the interpreter's exit handlers, which belong to the parent.
    os._exit(0)


def run_all(
    jobs: Sequence[tuple[Callable[[], Any], Path]], workers: int
) -> Iterator[tuple[int, Any]]:
    """Run jobs, each in a fork of this process, and yield (number, result) as they finish.

    Args:
        jobs: what is called, and the file for its output.
        workers: how many at once.

    Raises:
        RuntimeError: a job failed; the others that were running are finished first.
    """
    context = get_context("fork")
    waiting = list(enumerate(jobs))[::-1]
    running: dict[Any, tuple[int, Any, Path]] = {}
    failed: str | None = None
    while waiting or running:
        while waiting and len(running) < workers and failed is None:
            number, (job, log) = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(job, log, sender))
            process.start()
            sender.close()
            running[receiver] = (number, process, log)
        if not running:
            break
        for receiver in wait(list(running)):
            number, process, log = running.pop(receiver)
            try:
                good, result = receiver.recv()
            except EOFError:
                good, result = False, "the process died"
            process.join()
            if good:
                yield number, result
            else:
                failed = failed or f"job {number} failed, see {log}:\n{result}"
    if failed:
        raise RuntimeError(failed)
