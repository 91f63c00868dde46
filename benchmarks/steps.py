"""A training step in five ways, on the same pairs: processor time, gradients and memory.

``python -m benchmarks.steps PRESET TURNS ASSETS FILE`` writes what it found to FILE. An update has
``ACCUMULATION`` micro-batches; the ways take turns, and the host's garbage collection is left out.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.presets import PRESETS, Preset
from sera_plugin.data.dealing import dealt_by_length
from sera_plugin.data.rounds import ROW_KEY
from sera_plugin.data.schedule import Batching
from sera_plugin.host.merged_step import HELD
from sera_plugin.host.round_trainer import RoundTrainer
from sera_plugin.scoring.packed import Packed
from sera_plugin.training.objective import BASES, base_of
from sera_plugin.training.terms.term import Objective

ACCUMULATION = 4
VOCABULARY = 32_768
"""Of the model whose memory is measured."""
WAYS = ("host", "sorted", "packed", "shared", "merged")
"""The last is with shared prompts and all micro-batches of the update in one pass."""
KINDS = ("linear layers", "attention", "logits", "rest")
"""Of work: products with weights, attention, all that has a row per token of the vocabulary."""


class Steps:
    """Updates of one model on the first pairs of the data.

    Args:
        preset: sizes.
        assets: where ``assets.make`` wrote.
        loss: the host's name.
        vocabulary: of a model made anew, or None for the one in ``assets``.
    """

    def __init__(self, preset: Preset, assets: Path, loss: str, vocabulary: int | None) -> None:
        torch.set_num_threads(1)
        self.preset = preset
        words = AutoTokenizer.from_pretrained(assets / "model")
        lines = (assets / "train.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [
            {
                "prompt": words.apply_chat_template(
                    row["messages"], tokenize=False, add_generation_prompt=True
                ),
                "chosen": row["chosen"]["content"],
                "rejected": row["rejected"]["content"],
            }
            for row in map(json.loads, lines[: preset.micro_batch * ACCUMULATION])
        ]
        if vocabulary is None:
            model = AutoModelForCausalLM.from_pretrained(assets / "model")
        else:
            torch.manual_seed(0)
            config = AutoConfig.from_pretrained(assets / "model", vocab_size=vocabulary)
            model = AutoModelForCausalLM.from_config(config)
        args = AxolotlDPOConfig(
            output_dir=str(assets / "steps"),
            loss_type=[loss],
            label_smoothing=0.1 if loss == "robust" else 0.0,
            beta=0.1,
            max_length=preset.sequence_len,
            use_cpu=True,
            report_to=[],
            bf16=False,
            precompute_ref_log_probs=True,
            remove_unused_columns=False,
        )
        self.trainer = RoundTrainer(
            model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=words
        )
        self.trainer.model.train()
        self.base = base_of(loss, 0.1)
        self.rows = [dict(row) for row in self.trainer.train_dataset]
        self._reference()

    def _reference(self) -> None:
        """Log-probs near the policy's own, as at the start of a run."""
        draw = np.random.default_rng(0)
        for number, row in enumerate(self.rows):
            row[ROW_KEY] = str(number)
            batch = self.trainer.data_collator([{**row, **_sides(0.0, 0.0)}])
            with torch.no_grad():
                found = Packed(0, False, None)(self.trainer.model, batch)
            chosen, rejected = found.pairs(found.logps)[0] + torch.tensor(draw.normal(size=2))
            row |= _sides(float(chosen), float(rejected))

    def batches(self, way: str) -> list[dict[str, Any]]:
        """The micro-batches of the update."""
        size, rows = self.preset.micro_batch, self.rows
        if way != "host":
            lengths = [
                len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
                for row in rows
            ]
            order = dealt_by_length(lengths, Batching(size, ACCUMULATION, 1))
            rows = [rows[number] for number in order]
        cut = [rows[start : start + size] for start in range(0, len(rows), size)]
        return [self.trainer.data_collator(part) for part in cut]

    def update(self, way: str, count: int = ACCUMULATION) -> tuple[float, torch.Tensor]:
        """Seconds of processor time of forward and backward passes, and the gradient."""
        packed = None
        if way in ("packed", "shared", "merged"):
            packed = Packed(0, way != "packed", 6 * self.preset.hidden)
        objective = Objective(self.base, 0.1, ()) if packed else None
        rounds: Any = SimpleNamespace(objective=objective, notes_logps=False, packed=packed)
        self.trainer.rounds = rounds
        batches = self.batches(way)[:count]
        passes = [{HELD: batches}] if way == "merged" else batches
        start = time.process_time()
        for one in passes:
            (self.trainer.compute_loss(self.trainer.model, one) / len(batches)).backward()
        seconds = time.process_time() - start
        gradient = torch.cat([p.grad.flatten() for p in self.trainer.model.parameters()])
        self.trainer.model.zero_grad()
        return seconds, gradient


def _sides(chosen: float, rejected: float) -> dict[str, float]:
    return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}


def measure(preset: Preset, turns: int, assets: Path) -> dict[str, Any]:
    """Seconds of every way and turn, relative differences of gradients, and memory."""
    steps = Steps(preset, assets, "sigmoid", None)
    for way in WAYS:
        steps.update(way, 1)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(turns):
        for way in WAYS:
            seconds[way].append(steps.update(way)[0])
    profiles = {way: profiled(steps, way) for way in WAYS}
    differences = {loss: _differences(Steps(preset, assets, loss, None)) for loss in BASES}
    memory = {way: _memory(preset, assets, way) for way in WAYS}
    return {
        "pairs": len(steps.rows),
        "seconds": seconds,
        "profile": profiles,
        "gradients": {loss: found for loss, (found, _) in differences.items()},
        "gradients_exact": {loss: found for loss, (_, found) in differences.items()},
        "vocabulary": VOCABULARY,
        "memory_mib": memory,
    }


def profiled(steps: Steps, way: str) -> dict[str, float]:
    """Seconds of an update by kind of work, of the time that operators themselves take."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    ) as profiler:
        steps.update(way)
    vocabulary, found = steps.trainer.model.config.vocab_size, dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages(group_by_input_shape=True):
        found[_kind(event.key, event.input_shapes, vocabulary)] += event.self_cpu_time_total / 1e6
    return {kind: round(seconds, 4) for kind, seconds in found.items()}


def _kind(operator: str, shapes: Any, vocabulary: int) -> str:
    if any(vocabulary in shape for shape in shapes if isinstance(shape, list)):
        return "logits"
    if operator in ("aten::mm", "aten::addmm"):
        return "linear layers"
    if "attention" in operator or operator in ("aten::bmm", "aten::baddbmm"):
        return "attention"
    return "rest"


Differences = dict[str, float]


def _differences(steps: Steps) -> tuple[Differences, Differences]:
    """Of gradients of an update, relative in size: to the host's, and to the host's in float64."""
    found = {way: steps.update(way)[1] for way in WAYS}
    steps.trainer.model.double()
    exact = steps.update("host")[1]
    expected = found["host"]
    return (
        {way: float((found[way] - expected).norm() / expected.norm()) for way in WAYS[1:]},
        {way: float((found[way].double() - exact).norm() / exact.norm()) for way in WAYS},
    )


def _memory(preset: Preset, assets: Path, way: str) -> dict[str, float]:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = ["-m", "benchmarks.steps", preset.name, way, str(assets), file.name]
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        return json.loads(Path(file.name).read_text(encoding="utf-8"))


def _resident(field: str) -> float:
    """A number of the process's memory, MiB (Linux): ``VmRSS`` now, ``VmHWM`` at its peak."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def _forget_peak() -> None:
    """Start ``VmHWM`` anew, from what is resident now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def memory_of(preset: Preset, assets: Path, way: str) -> dict[str, float]:
    """Resident memory of a process that makes an update, MiB: before it, and its peak."""
    steps = Steps(preset, assets, "sigmoid", VOCABULARY)
    steps.update(way, 1)
    _forget_peak()
    before = _resident("VmRSS")
    steps.update(way)
    return {"before": before, "peak": _resident("VmHWM")}


if __name__ == "__main__":
    name, turns_or_way, folder, file = sys.argv[1:]
    sizes, where = PRESETS[name], Path(folder)
    if turns_or_way in WAYS:
        result = memory_of(sizes, where, turns_or_way)
    else:
        result = measure(sizes, int(turns_or_way), where)
    Path(file).write_text(json.dumps(result), encoding="utf-8")
