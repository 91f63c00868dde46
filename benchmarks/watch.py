"""An Axolotl plugin that measures the run it is part of and writes what it found as JSON.

The environment variable ``SERA_BENCHMARK`` says where to, and how often the passes are compared.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

VARIABLE = "SERA_BENCHMARK"
GIB = 2**30


class WatchPlugin(BasePlugin):
    """Measures ``trainer.train()``, imports and the building of models left out.

    A pass over the reference in the trainer's constructor counts as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reference, self.reference_cpu = 0.0, 0.0

    def pre_model_load(self, cfg: Any) -> None:
        from trl import DPOTrainer  # not before Axolotl has patched it

        precompute = DPOTrainer._precompute_ref_logps
        if hasattr(precompute, "watched"):
            return  # the host loads two models

        def watched(*args: Any, **kwargs: Any) -> Any:
            cpu, wall = time.process_time(), time.perf_counter()
            found = precompute(*args, **kwargs)
            self.reference += time.perf_counter() - wall
            self.reference_cpu += time.process_time() - cpu
            return found

        watched.watched = True
        DPOTrainer._precompute_ref_logps = watched

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        wanted = json.loads(os.environ[VARIABLE])
        watch = Watch()
        trainer.add_callback(watch)
        train = trainer.train

        def watched(*args: Any, **kwargs: Any) -> Any:
            watch.start()
            done = train(*args, **kwargs)
            found = watch.stop(trainer)
            found["reference_seconds"] = self.reference
            found["seconds"] += self.reference
            found["cpu_seconds"] += self.reference_cpu
            if wanted["passes"]:
                from benchmarks.passes import compare_passes

                found["passes"] = compare_passes(trainer, wanted)
            Path(wanted["report"]).write_text(json.dumps(found), encoding="utf-8")
            return done

        trainer.train = watched


class Watch(TrainerCallback):
    """Clocks, garbage collections and memory of one training run."""

    def __init__(self) -> None:
        self.gpu = torch.cuda.is_available()
        self.steps = 0
        self.step_seconds = 0.0
        self.collections = 0
        self.collection_seconds = 0.0
        self.step_peak = 0
        self.whole_peak = 0

    def start(self) -> None:
        self.rss_before = _rss()
        gc.callbacks.append(self._collecting)
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def stop(self, trainer: Any) -> dict[str, Any]:
        self._synchronize()
        seconds, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        gc.callbacks.remove(self._collecting)
        found = {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "steps": self.steps,
            "step_seconds": self.step_seconds,
            "collections": self.collections,
            "collection_seconds": self.collection_seconds,
            "tokens": max((e.get("num_tokens", 0) for e in trainer.state.log_history), default=0),
            "rss_before_gib": self.rss_before / GIB,
            "rss_peak_gib": _rss() / GIB,
        }
        if self.gpu:
            self.whole_peak = max(self.whole_peak, torch.cuda.max_memory_allocated())
            found["cuda_step_peak_gib"] = self.step_peak / GIB
            found["cuda_peak_gib"] = self.whole_peak / GIB
        return found

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._synchronize()
        if self.gpu:
            self.whole_peak = max(self.whole_peak, torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
        self.step_started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._synchronize()
        if self.gpu:
            self.step_peak = max(self.step_peak, torch.cuda.max_memory_allocated())
        self.step_seconds += time.perf_counter() - self.step_started
        self.steps += 1

    def _synchronize(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def _collecting(self, phase: str, info: dict[str, int]) -> None:
        if info["generation"] < 2:
            return
        if phase == "start":
            self.collection_started = time.perf_counter()
        else:
            self.collections += 1
            self.collection_seconds += time.perf_counter() - self.collection_started


def _rss() -> int:
    """The process's largest resident set so far, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
